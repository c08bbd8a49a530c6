{{- /*
Values of an earlier release (helm upgrade --reuse-values) lack those that are new here: they get the chart's defaults,
which Helm does not offer to templates, from a copy. Every template that is rendered starts with this.
*/ -}}
{{- define "segserve.complete" -}}
{{- include "segserve.fill" (list .Values (.Files.Get "files/defaults.yaml" | fromYaml) (list "images" "monitoring" "networkPolicy")) -}}
{{- end }}

{{- /*
Of (list values defaults deep): set the defaults of absent values, in groups too; the groups in `deep` have groups of
their own. What is within others, such as resources, is the user's: who removed a part of it (null) meant it.
*/ -}}
{{- define "segserve.fill" -}}
{{- $given := index . 0 -}}
{{- $deep := index . 2 -}}
{{- range $name, $default := index . 1 -}}
{{- if not (hasKey $given $name) -}}
{{- $_ := set $given $name $default -}}
{{- else if kindIs "map" $default -}}
{{- range $inner, $value := $default -}}
{{- if not (hasKey (index $given $name) $inner) -}}
{{- $_ := set (index $given $name) $inner $value -}}
{{- else if and (has $name $deep) (kindIs "map" $value) -}}
{{- range $last, $each := $value -}}
{{- if not (hasKey (index $given $name $inner) $last) -}}
{{- $_ := set (index $given $name $inner) $last $each -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end }}

{{- /* The namespaces in which the release has the right to write, as a JSON list. */ -}}
{{- define "segserve.namespaces" -}}
{{ .Values.watchNamespaces | default (list .Release.Namespace) | toJson }}
{{- end }}

{{- define "segserve.name" -}}
{{ .Values.nameOverride | default "segserve" }}
{{- end }}

{{- define "segserve.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{ .Values.fullnameOverride }}
{{- else if .Values.nameOverride -}}
{{ printf "%s-%s" .Release.Name .Values.nameOverride | trunc 53 | trimSuffix "-" }}
{{- else -}}
{{ .Release.Name }}
{{- end -}}
{{- end }}

{{- define "segserve.selector" -}}
app.kubernetes.io/name: {{ include "segserve.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: operator
{{- end }}

{{- define "segserve.uiSelector" -}}
app.kubernetes.io/name: {{ include "segserve.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: ui
{{- end }}

{{- /* Name servers and the API server, as rules of a NetworkPolicy. */ -}}
{{- define "segserve.baseEgress" -}}
{{- $egress := .Values.networkPolicy.egress -}}
- ports:
    - port: 53
      protocol: UDP
    - port: 53
      protocol: TCP
  {{- with $egress.dns }}
  to:
    {{- toYaml . | nindent 8 }}
  {{- end }}
- ports:
    {{- range $egress.apiServerPorts }}
    - port: {{ . }}
      protocol: TCP
    {{- end }}
  {{- with $egress.apiServerCidrs }}
  to:
    {{- range . }}
    - ipBlock:
        cidr: {{ . | quote }}
    {{- end }}
  {{- end }}
{{- end }}

{{- define "segserve.labels" -}}
{{ include "segserve.labelsWith" (list . dict) }}
{{- end }}

{{- /* Of (list root labels): the chart's own labels, then these and the common ones. */ -}}
{{- define "segserve.labelsWith" -}}
{{- $root := index . 0 -}}
helm.sh/chart: {{ $root.Chart.Name }}-{{ $root.Chart.Version | replace "+" "_" }}
app.kubernetes.io/name: {{ include "segserve.name" $root }}
app.kubernetes.io/instance: {{ $root.Release.Name }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
{{- include "segserve.othersLabels" . }}
{{- end }}

{{- /* Of (list root labels): these and the common labels, without those that are the chart's to set. */ -}}
{{- define "segserve.othersLabels" -}}
{{- $labels := merge (deepCopy (index . 1)) (index . 0).Values.commonLabels -}}
{{- range $name := list "name" "instance" "version" "managed-by" "component" "part-of" -}}
{{- $_ := unset $labels (printf "app.kubernetes.io/%s" $name) -}}
{{- end -}}
{{- with omit $labels "helm.sh/chart" }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "segserve.serviceAccount" -}}
{{ .Values.serviceAccount.name | default (include "segserve.fullname" .) }}
{{- end }}

{{- /* An image of (list root image). */ -}}
{{- define "segserve.image" -}}
{{- $root := index . 0 }}{{ $image := index . 1 }}{{ $repository := $image.repository -}}
{{- with $root.Values.images.registry -}}
{{- $repository = printf "%s/%s" . (regexReplaceAll "^(localhost|[^/]*[.:][^/]*)/" $repository "") -}}
{{- end -}}
{{ $repository }}{{ if $image.digest }}@{{ $image.digest }}{{ else }}:{{ $image.tag | default $root.Chart.AppVersion }}{{ end }}
{{- end }}

{{- define "segserve.podSecurity" -}}
runAsNonRoot: true
{{- if ne (toString .Values.podSecurity.user) "cluster" }}
runAsUser: {{ int .Values.podSecurity.user }}
runAsGroup: {{ int .Values.podSecurity.user }}
fsGroup: {{ int .Values.podSecurity.user }}
{{- end }}
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{- /* The user of the worker, which is not the operator's: neither opens the other's files. */ -}}
{{- define "segserve.workerUser" -}}
{{ add1 (int .Values.podSecurity.user) }}
{{- end }}

{{- define "segserve.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}

{{- /* What the operator does in a namespace. It grants its servers and gateways nothing that is not in here. */ -}}
{{- define "segserve.rules" -}}
- apiGroups: [segserve.dev]
  resources: [segmentationmodels, tritonpools]
  verbs: [get, list, watch, patch]
- apiGroups: [segserve.dev]
  resources: [segmentationmodels/status, tritonpools/status]
  verbs: [get, patch]
- apiGroups: [segserve.dev]
  resources: [segmentationmodels/finalizers, tritonpools/finalizers]
  verbs: [update]
- apiGroups: [segserve.dev]
  resources: [segmentationrollouts]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [segserve.dev]
  resources: [segmentationrollouts/status]
  verbs: [get, patch]
- apiGroups: [apps]
  resources: [deployments, controllerrevisions]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [""]
  resources: [configmaps, services, serviceaccounts]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [rbac.authorization.k8s.io]
  resources: [roles, rolebindings]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [networking.k8s.io]
  resources: [networkpolicies]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [gateway.networking.k8s.io]
  resources: [httproutes, grpcroutes]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [""]
  resources: [pods]
  verbs: [get, list, watch]
{{- with .Values.rbac.notificationSecrets }}
- apiGroups: [""]
  resources: [secrets]
  resourceNames: {{ toJson . }}
  verbs: [get]
{{- end }}
- apiGroups: [""]
  resources: [events]
  verbs: [create, patch]
{{- end }}

{{- /* What the operator of a whole cluster reads outside of the namespaces that it works in: no Secrets. */ -}}
{{- define "segserve.reads" -}}
- apiGroups: [segserve.dev]
  resources: [segmentationmodels, segmentationrollouts, tritonpools]
  verbs: [get, list, watch]
- apiGroups: [apps]
  resources: [deployments, controllerrevisions]
  verbs: [get, list, watch]
- apiGroups: [""]
  resources: [configmaps, pods, serviceaccounts, services]
  verbs: [get, list, watch]
- apiGroups: [rbac.authorization.k8s.io]
  resources: [roles, rolebindings]
  verbs: [get, list, watch]
- apiGroups: [networking.k8s.io]
  resources: [networkpolicies]
  verbs: [get, list, watch]
- apiGroups: [gateway.networking.k8s.io]
  resources: [httproutes, grpcroutes]
  verbs: [get, list, watch]
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: [get, list, watch]
# kopf looks for new namespaces and definitions while it runs.
- apiGroups: [apiextensions.k8s.io]
  resources: [customresourcedefinitions]
  verbs: [list, watch]
- apiGroups: [""]
  resources: [namespaces]
  verbs: [list, watch]
{{- end }}

{{- define "segserve.pool" -}}
apiVersion: segserve.dev/v1alpha1
kind: TritonPool
metadata:
  name: {{ .Values.pool.name }}
  namespace: {{ .Release.Namespace }}
  labels:
    {{- include "segserve.labels" . | nindent 4 }}
spec:
  {{- toYaml .Values.pool.spec | nindent 2 }}
{{- end }}
