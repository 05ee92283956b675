// Package documents compares README.md and the pages in docs with the exporter: it runs their transcripts,
// loads their configuration, asks their queries, and compares their tables with what happens.
package documents
