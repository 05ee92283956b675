// Package documents tests README.md and the pages in docs: it runs their transcripts, loads their
// configurations, evaluates their queries, and compares their tables with the exporter.
package documents
