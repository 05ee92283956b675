{{/*
Fails if values contradict each other, or are wrong in a way that the schema cannot explain. All problems are reported
together: where, what is wrong, and what would be right.
*/}}
{{- define "shaker-exporter.validate" -}}
{{- $problems := list -}}
{{- $raw := eq .Values.engine "raw" -}}
{{- $config := include "shaker-exporter.config" . | fromYaml -}}

{{- if and (hasKey .Values "enabled") (not .Values.enabled) -}}
{{- $problems = append $problems "enabled is false, want it only as the condition of a dependency in the Chart.yaml of a parent chart" -}}
{{- end -}}

{{- /* The pods. */ -}}
{{- with .Values.autoscaling -}}
{{- if .enabled -}}
{{- if eq $.Values.kind "DaemonSet" -}}
{{- $problems = append $problems "autoscaling.enabled is true, but a DaemonSet has one pod on each node, want kind Deployment" -}}
{{- end -}}
{{- if gt (int .minReplicas) (int .maxReplicas) -}}
{{- $problems = append $problems (printf "autoscaling.minReplicas is %v, want at most maxReplicas, which is %v" .minReplicas .maxReplicas) -}}
{{- end -}}
{{- $resources := $.Values.resources | default dict -}}
{{- if not (or (dig "requests" "cpu" "" $resources) (dig "limits" "cpu" "" $resources)) -}}
{{- $problems = append $problems "autoscaling.enabled is true, want resources.requests.cpu, of which targetCPUUtilization is a percentage" -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- with .Values.image.repository -}}
{{- if contains "://" . -}}
{{- $problems = append $problems (printf "image.repository is %s, want it without a scheme, such as registry.example.com/shaker_exporter" .) -}}
{{- else if contains "@" . -}}
{{- $problems = append $problems (printf "image.repository is %s, want the digest in image.digest" .) -}}
{{- else if regexMatch ":[^/]*$" . -}}
{{- $problems = append $problems (printf "image.repository is %s, want the tag in image.tag" .) -}}
{{- end -}}
{{- end -}}
{{- if $raw -}}
{{- range $place, $context := dict "podSecurityContext" .Values.podSecurityContext "securityContext" .Values.securityContext -}}
{{- range $key := list "runAsUser" "runAsGroup" -}}
{{- with get ($context | default dict) $key -}}
{{- if or (eq $place "securityContext") (ne (int64 .) 65534) -}}
{{- $problems = append $problems (printf "%s.%s is %d, but engine: raw runs the pods as root, want no value" $place $key (int64 .)) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if get (.Values.securityContext | default dict) "runAsNonRoot" -}}
{{- $problems = append $problems "securityContext.runAsNonRoot is true, but engine: raw runs the pods as root, want no value" -}}
{{- end -}}
{{- end -}}

{{- /* The flags and the environment. */ -}}
{{- range .Values.extraEnv -}}
{{- if eq .name "SHAKER_PROBE_ENGINE" -}}
{{- $problems = append $problems "extraEnv has SHAKER_PROBE_ENGINE, want the value engine instead" -}}
{{- end -}}
{{- end -}}
{{- $instead := dict
  "config.file" "want the value config or existingConfigMap instead"
  "config.enable-auto-reload" "which the chart sets itself, want it left out"
  "probe.engine" "want the value engine instead"
  "probe.max-in-flight" "want the value maxInFlight instead"
  "web.config.file" "want the value web.configSecret instead"
  "web.listen-address" "want the value service.port instead"
  "web.systemd-socket" "but pods have no systemd, want it left out"
  "config.check" "which ends the exporter, want a flag of a running exporter"
  "version" "which ends the exporter, want a flag of a running exporter" -}}
{{- $others := list "config.auto-reload-interval" "history.limit" "hold.max-connections" "log.format" "log.level" "log.prober" "probe.raw-ports" "timeout-offset" "watch.max-rate" "watch.max-targets" "web.enable-pprof" "web.external-url" "web.route-prefix" -}}
{{- $flags := list -}}
{{- range .Values.extraArgs -}}
{{- $flag := regexFind "[^=]*" . | trimPrefix "--no-" | trimPrefix "--" -}}
{{- if hasKey $instead $flag -}}
{{- $problems = append $problems (printf "extraArgs has --%s, %s" $flag (get $instead $flag)) -}}
{{- else if regexMatch "^(help|completion)(-|$)" $flag -}}
{{- $problems = append $problems (printf "extraArgs has --%s, %s" $flag $instead.version) -}}
{{- else if regexMatch "\\s" $flag -}}
{{- $problems = append $problems (printf "extraArgs has %q, want the flag and its value joined by =" .) -}}
{{- else if not (has $flag $others) -}}
{{- $problems = append $problems (printf "extraArgs has --%s, want one of --%s" $flag (join ", --" $others)) -}}
{{- else if and (eq $flag "web.enable-pprof") (contains "=" .) -}}
{{- $problems = append $problems (printf "extraArgs has %s, want --web.enable-pprof without a value" .) -}}
{{- else if and (ne $flag "web.enable-pprof") (not (hasPrefix (printf "--%s=" $flag) .)) -}}
{{- $problems = append $problems (printf "extraArgs has %s, want it with a value: --%s=…" . $flag) -}}
{{- else if has $flag $flags -}}
{{- $problems = append $problems (printf "extraArgs has --%s twice, want it once" $flag) -}}
{{- end -}}
{{- $flags = append $flags $flag -}}
{{- if and (eq $flag "probe.raw-ports") (not $raw) -}}
{{- $problems = append $problems "extraArgs has --probe.raw-ports, want also engine: raw" -}}
{{- end -}}
{{- if and (has $flag (list "web.external-url" "web.route-prefix")) (not (has "--web.route-prefix=/" $.Values.extraArgs)) -}}
{{- $problems = append $problems (printf "extraArgs has --%s, want also --web.route-prefix=/, because Kubernetes and Prometheus expect the endpoints there" $flag) -}}
{{- end -}}
{{- end -}}

{{- /* The configuration, TLS and access. */ -}}
{{- if not .Values.existingConfigMap -}}
{{- if not $config -}}
{{- $problems = append $problems "config is empty, want targets or modules, or existingConfigMap" -}}
{{- end -}}
{{- range $key, $null := dict "targets" "to permit all targets" "modules" "for the built-in modules" -}}
{{- if and (hasKey $config $key) (not (get $config $key)) -}}
{{- $problems = append $problems (printf "config.%s is empty, want config.%s: null %s" $key $key $null) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- with .Values.existingConfigMap -}}
{{- /* The checksum of config in values.yaml, which `helm template` prints as checksum/config. */ -}}
{{- if and $config (ne (include "shaker-exporter.config" $ | sha256sum) "98384dc198b7c784416e85df1d94c6bafafdbee34e7f6bb2b62e33dd74cf8981") -}}
{{- $problems = append $problems (printf "existingConfigMap is %s, which replaces config, want only one of them" .) -}}
{{- end -}}
{{- end -}}
{{- if and (eq .Values.web.scheme "https") (not .Values.web.configSecret) -}}
{{- $problems = append $problems "web.scheme is https, want web.configSecret, a Secret whose web-config.yml has a tls_server_config" -}}
{{- end -}}
{{- if and .Values.networkPolicy.from (not .Values.networkPolicy.enabled) -}}
{{- $problems = append $problems "networkPolicy.from has clients, want networkPolicy.enabled: true, because all clients can connect without it" -}}
{{- end -}}
{{- if and .Values.hostNetwork .Values.networkPolicy.enabled -}}
{{- $problems = append $problems "hostNetwork is true, want networkPolicy.enabled: false, because a NetworkPolicy does not apply to such pods" -}}
{{- end -}}
{{- if and .Values.serviceAccount.annotations (not .Values.serviceAccount.create) -}}
{{- $problems = append $problems "serviceAccount.annotations has annotations, want serviceAccount.create: true, or to annotate the account that exists" -}}
{{- end -}}
{{- $max := get .Values.podDisruptionBudget "maxUnavailable" | toString -}}
{{- $min := get .Values.podDisruptionBudget "minAvailable" | toString -}}
{{- if not (or $min $max) -}}
{{- $problems = append $problems "podDisruptionBudget has neither maxUnavailable nor minAvailable, want one of them" -}}
{{- else if and $min (not (has $max (list "" "1"))) -}}
{{- $problems = append $problems (printf "podDisruptionBudget has maxUnavailable %s and minAvailable %s, want only one of them" $max $min) -}}
{{- end -}}

{{- /* Labels and annotations that the chart sets, too. */ -}}
{{- $selector := include "shaker-exporter.selector" . | fromYaml -}}
{{- $labels := include "shaker-exporter.labels" . | fromYaml -}}
{{- $checksum := dict -}}
{{- if and .Values.restartOnConfigChange (not .Values.existingConfigMap) -}}
{{- $checksum = dict "checksum/config" "" -}}
{{- end -}}
{{- range list
  (list "podLabels" .Values.podLabels $selector "label")
  (list "podAnnotations" .Values.podAnnotations $checksum "annotation")
  (list "monitoring.labels" .Values.monitoring.labels $labels "label")
  (list "dashboards.labels" .Values.dashboards.labels $labels "label") -}}
{{- $place := index . 0 -}}
{{- $set := index . 2 -}}
{{- $thing := index . 3 -}}
{{- range $key, $_ := index . 1 -}}
{{- if hasKey $set $key -}}
{{- $problems = append $problems (printf "%s has %s, which the chart sets, want another %s" $place $key $thing) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- /* What Prometheus scrapes. */ -}}
{{- $modules := get $config "modules" | default (dict "tcp_connect" "" "tcp_connect_ip4" "" "tcp_connect_ip6" "") -}}
{{- if not (kindIs "map" $modules) -}}
{{- $problems = append $problems "config.modules is not a mapping, want the modules by their names" -}}
{{- $modules = dict -}}
{{- end -}}
{{- /* Fields of the objects that values have, or that the chart sets itself. */ -}}
{{- $job := dict "jobName" "job" "module" "module" "params" "module" "interval" "interval" "scrapeInterval" "interval" "scrapeTimeout" "scrapeTimeout" "relabelings" "" "metricsPath" "" "scheme" "" "prober" "" -}}
{{- $fields := dict
  "probes" (merge (dict "targets" "targets" "relabelings" "labels") $job)
  "scrapeConfigs" (merge (dict "relabelings" "relabelings") $job) -}}
{{- range $field := list "port" "targetPort" "interval" "scheme" -}}
{{- if hasKey ($.Values.serviceMonitor.endpoint | default dict) $field -}}
{{- $value := get (dict "interval" "want the value serviceMonitor.interval instead" "scheme" "want the value web.scheme instead") $field -}}
{{- $problems = append $problems (printf "serviceMonitor.endpoint has %s, %s" $field ($value | default "which the chart sets itself, want it left out")) -}}
{{- end -}}
{{- end -}}
{{- $jobs := list (list "serviceMonitor" (dict
  "interval" .Values.serviceMonitor.interval
  "scrapeTimeout" (get (.Values.serviceMonitor.endpoint | default dict) "scrapeTimeout")) "endpoint.") -}}
{{- $probed := dict -}}
{{- range $kind, $configs := dict "probes" .Values.probes "scrapeConfigs" .Values.scrapeConfigs -}}
{{- range $key, $config := $configs -}}
{{- $config = $config | default dict -}}
{{- $place := printf "%s.%s" $kind $key -}}
{{- $jobs = append $jobs (list $place $config "") -}}
{{- $module := $config.module | default "tcp_connect" -}}
{{- if and $config (not (or $.Values.existingConfigMap (hasKey $modules $module))) -}}
{{- $problems = append $problems (printf "%s.module is %s, want a module of config.modules: %s" $place $module (keys $modules | sortAlpha | join ", ")) -}}
{{- end -}}
{{- range $field, $_ := $config.spec -}}
{{- $value := get (get $fields $kind) $field -}}
{{- if regexMatch "^staticConfigs$|SDConfigs$" $field -}}
{{- $value = eq $kind "probes" | ternary "targets" "discovery" -}}
{{- end -}}
{{- if $value -}}
{{- $problems = append $problems (printf "%s.spec has %s, want the value %s.%s instead" $place $field $place $value) -}}
{{- else if hasKey $job $field -}}
{{- $problems = append $problems (printf "%s.spec has %s, which the chart sets itself, want it left out" $place $field) -}}
{{- end -}}
{{- end -}}
{{- range $config.targets -}}
{{- $series := list . ($config.job | default "shaker") $config.labels | toJson -}}
{{- with get $probed $series -}}
{{- $problems = append $problems (printf "%s has a target of %s, with the same job and labels, want another job or label: %s" $place . (fromJsonArray $series | first)) -}}
{{- end -}}
{{- $_ := set $probed $series $place -}}
{{- $port := regexFind "[0-9]+$" . -}}
{{- if not (and (regexMatch "^([^][:/\\s]+|\\[[0-9A-Fa-f:.]+(%[^]\\s]+)?\\]):[0-9]{1,5}$" .) (ge (int $port) 1) (le (int $port) 65535)) -}}
{{- $problems = append $problems (printf "%s.targets has %q, want HOST:PORT, such as example.com:443 or [2001:db8::1]:443, with a port from 1 to 65535" $place .) -}}
{{- end -}}
{{- end -}}
{{- range $name, $_ := $config.labels -}}
{{- if or (has $name (list "instance" "job")) (hasPrefix "__" $name) -}}
{{- $problems = append $problems (printf "%s.labels has %s, which the chart or Prometheus sets, want another label" $place $name) -}}
{{- else if and (eq $name "prober") (eq $.Values.kind "DaemonSet") $config.targets -}}
{{- $problems = append $problems (printf "%s.labels has prober, which is the name of the node with kind DaemonSet, want another label" $place) -}}
{{- end -}}
{{- end -}}
{{- range $config.relabelings -}}
{{- if has (get . "targetLabel") (list "__param_target" "instance") -}}
{{- $problems = append $problems (printf "%s.relabelings sets %s, want __address__, from which the chart sets it" $place .targetLabel) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- range $jobs -}}
{{- $place := index . 0 -}}
{{- $job := index . 1 -}}
{{- $prefix := index . 2 -}}
{{- $interval := include "shaker-exporter.milliseconds" ($job.interval | default "15s") | int64 -}}
{{- $timeout := include "shaker-exporter.milliseconds" ($job.scrapeTimeout | default "1ms") | int64 -}}
{{- if not $interval -}}
{{- $problems = append $problems (printf "%s.interval is %s, want more than 0s" $place $job.interval) -}}
{{- else if not $timeout -}}
{{- $problems = append $problems (printf "%s.%sscrapeTimeout is %s, want more than 0s" $place $prefix $job.scrapeTimeout) -}}
{{- else if gt $timeout $interval -}}
{{- $problems = append $problems (printf "%s.%sscrapeTimeout is %s, want at most the interval, which is %s" $place $prefix $job.scrapeTimeout ($job.interval | default "15s")) -}}
{{- end -}}
{{- end -}}

{{- with $problems -}}
{{- fail (join "\n" . | printf "invalid values:\n%s") -}}
{{- end -}}
{{- end -}}

{{/* The milliseconds of a duration of Prometheus, such as 1m30s. */}}
{{- define "shaker-exporter.milliseconds" -}}
{{- $units := dict "y" 31536000000 "w" 604800000 "d" 86400000 "h" 3600000 "m" 60000 "s" 1000 "ms" 1 -}}
{{- $sum := 0 -}}
{{- range regexFindAll "[0-9]+[a-z]+" . -1 -}}
{{- $sum = mul (regexFind "[0-9]+" . | int64) (get $units (regexFind "[a-z]+" .)) | add $sum -}}
{{- end -}}
{{- $sum -}}
{{- end -}}
