{{/* The server's configuration file. Ranges are checked here, so that a wrong value stops an upgrade and not the server. */}}

{{/* An amount as a whole number: of bytes, of milliseconds, or plain. Argument: dict "value" "units" "name" */}}
{{- define "roost.amount" -}}
{{- if kindIs "string" .value -}}
{{- $unit := regexFind "[A-Za-z]*$" .value -}}
{{- $number := trimSuffix $unit .value | trim -}}
{{- $factor := get .units $unit -}}
{{- if not $factor -}}
{{- fail (printf "%s = %q: the unit %q is not one of %s" .name .value $unit (keys .units | sortAlpha | join ", ")) -}}
{{- end -}}
{{- if gt (len $number) 15 -}}
{{- fail (printf "%s = %q is too large" .name .value) -}}
{{- end -}}
{{- mul (int64 $number) (int64 $factor) -}}
{{- else -}}
{{- int64 .value -}}
{{- end -}}
{{- end -}}

{{- define "roost.toml" -}}
{{- $settings := .Files.Get "files/settings.json" | fromJson -}}
{{- range $key, $value := .Values.config }}
{{- if not (hasKey $settings $key) }}
{{- fail (printf "config.%s is no setting of this version" $key) }}
{{- end }}
{{- $setting := get $settings $key -}}
{{- if hasKey $setting "units" }}
{{- $amount := include "roost.amount" (dict "value" $value "units" $setting.units "name" (printf "config.%s" $key)) | int64 }}
{{- if or (lt $amount (int64 $setting.min)) (gt $amount (int64 $setting.max)) }}
{{- fail (printf "config.%s = %v is out of range: it must be %d to %d%s" $key $value (int64 $setting.min) (int64 $setting.max) $setting.in) }}
{{- end }}
{{ $key }} = {{ $amount }}
{{- else }}
{{ $key }} = {{ toRawJson $value }}
{{- end }}
{{- end }}
{{- end -}}

{{/* What two values say together. */}}
{{- define "roost.validate" -}}
{{- if and .Values.serviceMonitor.enabled .Values.networkPolicy.enabled (not .Values.networkPolicy.metrics) -}}
{{- fail "serviceMonitor.enabled: nobody may scrape; name your Prometheus in networkPolicy.metrics" -}}
{{- end -}}
{{- $target := default "" .Values.config.dump_target -}}
{{- if and (regexMatch "^(s3|gs|az)://" $target) .Values.networkPolicy.enabled (not .Values.networkPolicy.egress) -}}
{{- fail "config.dump_target: the pod may not reach it; add a rule for it to networkPolicy.egress" -}}
{{- end -}}
{{- if and .Values.config.http_release_url .Values.networkPolicy.enabled (not .Values.networkPolicy.egress) -}}
{{- fail "config.http_release_url: the pod may not reach it; add a rule for it to networkPolicy.egress" -}}
{{- end -}}
{{- if and .Values.prometheusRule.enabled (not (.Files.Get "files/alerts.yaml")) -}}
{{- fail "prometheusRule.enabled: this chart was made without alert rules" -}}
{{- end -}}
{{- end -}}
