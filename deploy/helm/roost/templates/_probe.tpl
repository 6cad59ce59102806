{{/* One probe: the native gRPC one, or, because a kubelet's gRPC speaks no TLS, the admin port's. Argument: list of the
root, the name of the probe, the health service (live, ready). */}}
{{- define "roost.probe" -}}
{{- $root := index . 0 -}}
{{- $name := index . 1 -}}
{{- $service := index . 2 -}}
{{ $name }}Probe:
  {{- if $root.Values.tls.enabled }}
  httpGet:
    port: 9117
    path: {{ ternary "/healthz" "/readyz" (eq $service "live") }}
  {{- else }}
  grpc:
    port: 7117
    service: {{ $service }}
  {{- end }}
  {{- toYaml (get $root.Values.probes $name) | nindent 2 }}
{{- end -}}
