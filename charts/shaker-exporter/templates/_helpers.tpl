{{/*
The name of an object, from a list of the root context and a suffix that may be empty: RELEASE-shaker-exporter-SUFFIX.
Objects of two releases never have the same name. A name that Kubernetes would reject, because it is too long, has dots
or starts with a digit, is shortened, and gets a hash instead.
*/}}
{{- define "shaker-exporter.name" -}}
{{- $root := index . 0 -}}
{{- $name := $root.Values.fullnameOverride -}}
{{- if not $name -}}
{{- $name = $root.Release.Name -}}
{{- if ne $name $root.Chart.Name -}}
{{- $name = printf "%s-%s" $name $root.Chart.Name -}}
{{- end -}}
{{- end -}}
{{- with index . 1 -}}
{{- $name = printf "%s-%s" $name . -}}
{{- end -}}
{{- if not (regexMatch "^[a-z]([-a-z0-9]{0,61}[a-z0-9])?$" $name) -}}
{{- $name = printf "shaker-%s-%s" ($name | replace "." "-" | trunc 47) ($name | sha256sum | trunc 8) -}}
{{- end -}}
{{- $name -}}
{{- end -}}

{{/*
The labels by which the objects select the pods, and the ServiceMonitor the Service. The name is also the job of the
exporter's own metrics, as the rules expect. The component differs if a parent chart has this chart several times.
*/}}
{{- define "shaker-exporter.selector" -}}
app.kubernetes.io/name: shaker_exporter
app.kubernetes.io/instance: {{ .Release.Name | quote }}
app.kubernetes.io/component: {{ .Chart.Name | quote }}
{{- end -}}

{{- define "shaker-exporter.labels" -}}
{{ include "shaker-exporter.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | replace "+" "_" | trunc 63 | trimAll "-_." | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimAll "-_." }}
{{- end -}}

{{/* The labels of the objects of the Prometheus Operator. */}}
{{- define "shaker-exporter.monitoringLabels" -}}
{{ include "shaker-exporter.labels" . }}
{{- with .Values.monitoring.labels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* The address to which Prometheus sends probes. */}}
{{- define "shaker-exporter.address" -}}
{{ include "shaker-exporter.name" (list . "") }}.{{ .Release.Namespace }}.svc:{{ .Values.service.port }}
{{- end -}}

{{- define "shaker-exporter.image" -}}
{{- $image := .Values.image -}}
{{- $repository := required "image.repository is missing, want the image in the registry from which the cluster pulls it, such as registry.example.com/shaker_exporter" $image.repository -}}
{{- if $image.digest -}}
{{ $repository }}@{{ $image.digest }}
{{- else -}}
{{- $tag := $image.tag | default (.Chart.AppVersion | replace "+" "_") -}}
{{- if eq $tag "unreleased" -}}
{{- $tag = required "image.tag is missing: only a chart that `make chart` packaged has a default" $image.tag -}}
{{- end -}}
{{ $repository }}:{{ $tag }}
{{- end -}}
{{- end -}}

{{- define "shaker-exporter.serviceAccount" -}}
{{- if .Values.serviceAccount.name -}}
{{ .Values.serviceAccount.name }}
{{- else if .Values.serviceAccount.create -}}
{{ include "shaker-exporter.name" (list . "") }}
{{- else -}}
default
{{- end -}}
{{- end -}}

{{/*
The configuration file. Helm itself removes a key that is null only from the chart's own values, and not from those of
an earlier file of values.
*/}}
{{- define "shaker-exporter.config" -}}
{{- $config := deepCopy (.Values.config | default dict) -}}
{{- include "shaker-exporter.removeNull" $config -}}
{{- toYaml $config -}}
{{- end -}}

{{- define "shaker-exporter.removeNull" -}}
{{- $object := . -}}
{{- range $key, $value := $object -}}
{{- if kindIs "invalid" $value -}}
{{- $_ := unset $object $key -}}
{{- else if kindIs "map" $value -}}
{{- include "shaker-exporter.removeNull" $value -}}
{{- end -}}
{{- end -}}
{{- end -}}
