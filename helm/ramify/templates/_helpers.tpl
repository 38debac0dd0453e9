{{/* Names, labels and what every pod has. */}}

{{- define "ramify.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- $full := .Values.fullnameOverride | default (ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name)) -}}
{{- if gt (len $full) 45 -}}
{{- fail (printf "the name %s has %d characters, more than 45, with which names of Services end: set fullnameOverride" $full (len $full)) -}}
{{- end -}}
{{- $full -}}
{{- end -}}

{{/* Labels of an object. Takes a dict: root, and component if it belongs to one. */}}
{{- define "ramify.labels" -}}
{{- with .root.Values.commonLabels }}{{ toYaml . }}
{{ end -}}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
{{ include "ramify.selector" . }}
{{- end -}}

{{/* Labels by which pods are selected: they never change. */}}
{{- define "ramify.selector" -}}
app.kubernetes.io/name: ramify
app.kubernetes.io/instance: {{ .root.Release.Name }}
{{- with .component }}
app.kubernetes.io/component: {{ . }}
{{- end }}
{{- with .group }}
ramify.dev/group: {{ . }}
{{- end }}
{{- end -}}

{{/* An image. Takes a dict: root, and image, which is cpu or vllm. */}}
{{- define "ramify.image" -}}
{{- $image := index .root.Values.image .image -}}
{{- $name := $image.repository -}}
{{- with .root.Values.image.registry }}{{ $name = printf "%s/%s" (trimSuffix "/" .) $name }}{{ end -}}
{{- if $image.digest }}{{ printf "%s@%s" $name $image.digest }}{{ else }}{{ printf "%s:%s" $name ($image.tag | default .root.Chart.AppVersion) }}{{ end -}}
{{- end -}}

{{- define "ramify.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "ramify.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
capabilities: {drop: [ALL]}
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{/* Where a pod may run. Takes a dict: root, and settings, which has nodeSelector and so on. */}}
{{- define "ramify.scheduling" -}}
{{- with .root.Values.imagePullSecrets }}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .settings.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .settings.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .settings.affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .settings.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .settings.runtimeClassName }}
runtimeClassName: {{ . }}
{{- end }}
{{- end -}}

{{/* Pods apart from each other, as far as that can be. Takes a dict: root, settings, component and group. */}}
{{- define "ramify.spread" -}}
topologySpreadConstraints:
{{- if .settings.topologySpreadConstraints }}
{{- toYaml .settings.topologySpreadConstraints | nindent 2 }}
{{- else }}
{{- $selector := include "ramify.selector" . }}
{{- range list "topology.kubernetes.io/zone" "kubernetes.io/hostname" }}
  - maxSkew: 1
    topologyKey: {{ . }}
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels: {{- $selector | nindent 8 }}
{{- end }}
{{- end }}
{{- end -}}

{{/* Variables of a container. Takes a dict: root, settings, and hub if it may fetch models. */}}
{{- define "ramify.env" -}}
- {name: RAMIFY_LOG_FORMAT, value: {{ .root.Values.logs.format }}}
{{- with .root.Values.tracing.endpoint }}
- {name: OTEL_EXPORTER_OTLP_ENDPOINT, value: {{ . | quote }}}
{{- end }}
{{- if .hub }}
{{- with .root.Values.models.huggingFace }}
{{- if not .enabled }}
- {name: HF_HUB_OFFLINE, value: "1"}
{{- else if .tokenSecret }}
- name: HF_TOKEN
  valueFrom:
    secretKeyRef: {name: {{ .tokenSecret }}, key: {{ .tokenKey }}}
{{- end }}
{{- end }}
{{- end }}
{{- with .root.Values.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- with .settings.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* The Secret with the store's URL, as the source of a projected volume: file store/url, and store/ca.crt if it has one. */}}
{{- define "ramify.storeSource" -}}
- secret:
    name: {{ include "ramify.storeSecret" . }}
    items:
      - {key: {{ ternary "url" .Values.store.key .Values.postgresql.enabled }}, path: store/url}
      {{- if and .Values.store.caKey (not .Values.postgresql.enabled) }}
      - {key: {{ .Values.store.caKey }}, path: store/ca.crt}
      {{- end }}
{{- end -}}

{{- define "ramify.storeSecret" -}}
{{- if .Values.postgresql.enabled -}}
{{- .Values.postgresql.existingSecret | default (printf "%s-postgresql" (include "ramify.fullname" .)) -}}
{{- else -}}
{{- required "where is the store? Set store.existingSecret to a Secret with PostgreSQL's URL, or postgresql.enabled=true for a trial (values-small.yaml is one)" .Values.store.existingSecret -}}
{{- end -}}
{{- end -}}

{{- define "ramify.tls" -}}
{{- if ne .Values.tls.mode "disabled" }}yes{{ end -}}
{{- end -}}

{{/* Whether the gateway asks its clients for certificates; ours then show the shards'. */}}
{{- define "ramify.mtls" -}}
{{- if and (include "ramify.tls" .) .Values.gateway.clientCa.existingSecret }}yes{{ end -}}
{{- end -}}

{{/* The Secret of a certificate. Takes a dict: root, and who, which is gateway, verifier or shards. */}}
{{- define "ramify.tlsSecret" -}}
{{- if eq .root.Values.tls.mode "existingSecret" -}}
{{- required (printf "tls.mode is existingSecret: set tls.%s.existingSecret" .who) (index .root.Values.tls .who).existingSecret -}}
{{- else -}}
{{- printf "%s-%s-tls" (include "ramify.fullname" .root) .who -}}
{{- end -}}
{{- end -}}

{{/* Names of the gateway's certificate. */}}
{{- define "ramify.gatewayNames" -}}
{{- $name := printf "%s-gateway" (include "ramify.fullname" .) -}}
{{- list $name (printf "%s.%s" $name .Release.Namespace) (printf "%s.%s.svc" $name .Release.Namespace) (printf "%s.%s.svc.cluster.local" $name .Release.Namespace) "localhost" | toJson -}}
{{- end -}}

{{- define "ramify.verifierNames" -}}
{{- $name := printf "%s-verifier-headless" (include "ramify.fullname" .) -}}
{{- list $name (printf "%s.%s.svc" $name .Release.Namespace) (printf "%s.%s.svc.cluster.local" $name .Release.Namespace) | toJson -}}
{{- end -}}

{{/* The claim with the models, if there is one. Takes a dict: root and settings. */}}
{{- define "ramify.modelsClaim" -}}
{{- .settings.modelsClaim | default .root.Values.models.existingClaim -}}
{{- end -}}

{{- define "ramify.serviceAccount" -}}
{{ include "ramify.fullname" .root }}-{{ .component }}
{{- end -}}
