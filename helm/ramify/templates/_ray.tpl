{{/* What a container needs of a machine, with its GPUs. Takes settings: resources and gpus. */}}
{{- define "ramify.gpuResources" -}}
{{- $resources := deepCopy (.resources | default dict) -}}
{{- if gt (int .gpus) 0 -}}
{{- $limits := merge (dict "nvidia.com/gpu" (int .gpus)) ($resources.limits | default dict) -}}
{{- $resources = merge (dict "limits" $limits) $resources -}}
{{- end -}}
{{ toYaml $resources }}
{{- end -}}

{{/* What Ray's containers have in common. Takes a dict: root, image, component, group, settings, hub. */}}
{{- define "ramify.rayContainer" -}}
image: {{ include "ramify.image" . }}
imagePullPolicy: {{ .root.Values.image.pullPolicy }}
securityContext: {{- include "ramify.containerSecurity" . | nindent 2 }}
env:
  {{- include "ramify.env" . | nindent 2 }}
  - {name: RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S, value: "5"} # after preStop there is nothing to wait for but Serve's proxy
  - {name: RAMIFY_LOG_LEVEL, value: {{ .root.Values.logs.level }}}
  {{- if eq .component "ray-head" }}
  - {name: RAY_SERVE_MAX_PER_REPLICA_RETRY_COUNT, value: "1000000"} # what an application waits for may come at any time
  {{- range $variable, $value := dict "RAY_GRAFANA_HOST" .root.Values.ray.grafanaHost "RAY_GRAFANA_IFRAME_HOST" .root.Values.ray.grafanaIframeHost "RAY_PROMETHEUS_HOST" .root.Values.ray.prometheusHost }}
  {{- if $value }}
  - {name: {{ $variable }}, value: {{ $value | quote }}}
  {{- end }}
  {{- end }}
  {{- end }}
volumeMounts:
  {{- if eq .component "scheduler" }}
  - {name: config, mountPath: /etc/ramify, readOnly: true}
  {{- end }}
  - {name: tmp, mountPath: /tmp}
  {{- if and .hub (include "ramify.modelsClaim" .) }}
  - {name: models, mountPath: {{ .root.Values.models.mountPath }}, readOnly: true}
  {{- end }}
{{- end -}}

{{/* What is read at the start alone makes a new Ray cluster when it changes; the number of shards and the fleet are read anew. */}}
{{- define "ramify.rayAnnotations" -}}
checksum/system: {{ regexReplaceAll "(?m)^shards = .*$" (include "ramify.systemToml" .root) "" | sha256sum }}
checksum/tolerations: {{ toJson .settings.tolerations | sha256sum }} # which some of KubeRay's versions overlook
{{- with .root.Values.podAnnotations }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* A JSON patch that brings how many pods the groups may have to a Ray cluster that runs: KubeRay leaves these numbers alone. */}}
{{- define "ramify.groupBounds" -}}
{{- $patch := list -}}
{{- $schedulers := .Values.ray.schedulers.replicas -}}
{{- $groups := list (dict "name" "schedulers" "replicas" (dict "min" $schedulers "max" $schedulers)) -}}
{{- range $at, $group := concat $groups .Values.engines.groups -}}
{{- $path := printf "/spec/workerGroupSpecs/%d" $at -}}
{{- $patch = append $patch (dict "op" "test" "path" (printf "%s/groupName" $path) "value" $group.name) -}}
{{- range $bound := list "min" "max" -}}
{{- $patch = append $patch (dict "op" "replace" "path" (printf "%s/%sReplicas" $path $bound) "value" (int64 (index $group.replicas $bound))) -}}
{{- end -}}
{{- end -}}
{{- append $patch (dict "op" "replace" "path" "/spec/workerGroupSpecs/0/replicas" "value" (int64 $schedulers)) | toJson -}}
{{- end -}}

{{/* What Ray's pods have in common. */}}
{{- define "ramify.rayPod" -}}
enableServiceLinks: false
securityContext: {{- include "ramify.podSecurity" . | nindent 2 }}
{{- include "ramify.scheduling" . }}
volumes:
  - name: tmp
    emptyDir: {sizeLimit: {{ .root.Values.ray.tmpSize }}}
  {{- if eq .component "scheduler" }}
  - name: config
    projected:
      defaultMode: 0440
      sources:
        - configMap: {name: {{ include "ramify.fullname" .root }}-system}
        {{- include "ramify.storeSource" .root | nindent 8 }}
        {{- if include "ramify.tls" .root }}
        - secret:
            name: {{ include "ramify.tlsSecret" (dict "root" .root "who" "shards") }}
            items:
              - {key: tls.crt, path: verifier-tls/tls.crt}
              - {key: tls.key, path: verifier-tls/tls.key}
              - {key: ca.crt, path: verifier-tls/ca.crt}
        - secret:
            name: {{ include "ramify.tlsSecret" (dict "root" .root "who" "gateway") }}
            items: [{key: ca.crt, path: gateway-tls/ca.crt}]
        {{- end }}
  {{- end }}
  {{- if and .hub (include "ramify.modelsClaim" .) }}
  - name: models
    persistentVolumeClaim: {claimName: {{ include "ramify.modelsClaim" . }}, readOnly: true}
  {{- end }}
{{- end -}}

{{/* A worker group's pods: what ends with the pod is handed over before. Takes in addition drainSeconds. */}}
{{- define "ramify.rayWorker" -}}
metadata:
  labels: {{- include "ramify.labels" . | nindent 4 }}
  annotations:
    {{- include "ramify.rayAnnotations" . | nindent 4 }}
spec:
  serviceAccountName: {{ include "ramify.serviceAccount" (dict "root" .root "component" "ray") }}
  automountServiceAccountToken: false
  terminationGracePeriodSeconds: {{ add .drainSeconds 30 }}
  {{- include "ramify.rayPod" . | nindent 2 }}
  {{- if .spread }}
  {{- include "ramify.spread" . | nindent 2 }}
  {{- end }}
  containers:
    - name: ray-worker
      {{- include "ramify.rayContainer" . | nindent 6 }}
      resources: {{- include "ramify.gpuResources" .settings | nindent 8 }}
      ports: [{name: metrics, containerPort: 8080}]
      # KubeRay's own would want an HTTP proxy of Serve on every node, and there is one on the head alone.
      readinessProbe: {httpGet: {path: /api/healthz, port: 52365}, periodSeconds: 5, timeoutSeconds: 5, failureThreshold: 3}
      lifecycle:
        preStop:
          exec: {command: [python, -m, ramify.serving.leave, --within-s={{ .drainSeconds }}]}
{{- end -}}
