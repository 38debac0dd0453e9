{{/* What the Serve application `system` reads. */}}
{{- define "ramify.systemToml" -}}
store_file = "/etc/ramify/store/url"
verifier = {{ .Values.verifier.external | default (printf "%s-verifier-headless:50061" (include "ramify.fullname" .)) | toJson }}
fleet_file = "/etc/ramify/fleet.toml"
shards = {{ int64 .Values.ray.schedulers.shards }}
shard_cpus = 1
shard_labels = { "ramify.dev/role" = "scheduler" }
lease_s = {{ .Values.shards.leaseSeconds }}
trees_max = {{ int64 .Values.shards.treesMax }}
{{- with .Values.store.retainDays }}
retain_days = {{ . }}
{{- end }}
{{- if include "ramify.tls" . }}

[verifier_tls]
ca = "/etc/ramify/verifier-tls/ca.crt"
certificate = "/etc/ramify/verifier-tls/tls.crt"
key = "/etc/ramify/verifier-tls/tls.key"
{{- end }}
{{- end -}}

{{/* The fleet, see docs/regions.md. */}}
{{- define "ramify.fleetToml" -}}
region_label = {{ .Values.engines.regionLabel | toJson }}
{{- with .Values.fleet.weights }}

[weights]
{{- range $name, $value := . }}
{{ $name }} = {{ $value }}
{{- end }}
{{- end }}
{{- range $region, $costs := .Values.fleet.regions }}

[regions.{{ $region | toJson }}]
{{- range $name, $value := $costs }}
{{ $name }} = {{ $value }}
{{- end }}
{{- end }}
{{- range .Values.engines.groups }}

[[engines]]
name = {{ .name | toJson }}
spec = {{ .spec | toJson }}
{{- with .region }}
region = {{ . | toJson }}
{{- end }}
count = {{ .replicas.start | default .replicas.min }}
count_min = {{ int64 .replicas.min }}
count_max = {{ int64 .replicas.max }}
gpus = {{ .gpus | default 0 }}
cpus = {{ .cpus | default 0 }}
labels = { "ramify.dev/engines" = {{ .name | toJson }} }
{{- end }}
{{- end -}}

{{/* Serve's applications. */}}
{{- define "ramify.serveConfig" -}}
proxy_location: HeadOnly
http_options: {host: 0.0.0.0, port: 8000}
logging_config: {encoding: {{ ternary "JSON" "TEXT" (eq .Values.logs.format "json") }}, log_level: {{ .Values.logs.level }}}
applications:
  - name: system
    import_path: ramify.serving.apps:system
    route_prefix: null
    args: {config: /etc/ramify/system.toml}
    deployments: # the nodes of the shards alone have what these read
      - name: system
        ray_actor_options: &placed {num_cpus: 0, label_selector: {ramify.dev/role: scheduler}}
  {{- if .Values.http.enabled }}
  - name: http
    import_path: ramify.serving.apps:http
    route_prefix: /
    args:
      gateway: {{ include "ramify.fullname" . }}-gateway:8700
      {{- if include "ramify.tls" . }}
      tls_ca: /etc/ramify/gateway-tls/ca.crt
      {{- end }}
      {{- if include "ramify.mtls" . }}
      tls_cert: /etc/ramify/verifier-tls/tls.crt
      tls_key: /etc/ramify/verifier-tls/tls.key
      {{- end }}
      {{- with .Values.http.settings }}
      {{- toYaml . | nindent 6 }}
      {{- end }}
    deployments:
      - name: http
        num_replicas: {{ .Values.http.replicas }}
        ray_actor_options: *placed
  {{- end }}
{{- end -}}
