{{- define "segserve.selector" -}}
app.kubernetes.io/name: segserve
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: operator
{{- end }}

{{- define "segserve.labels" -}}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version | replace "+" "_" }}
app.kubernetes.io/name: segserve
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{- define "segserve.serviceAccount" -}}
{{ .Values.serviceAccount.name | default .Release.Name }}
{{- end }}

{{- /* An image of (list root image). */ -}}
{{- define "segserve.image" -}}
{{- $root := index . 0 }}{{ $image := index . 1 -}}
{{ $image.repository }}{{ if $image.digest }}@{{ $image.digest }}{{ else }}:{{ $image.tag | default $root.Chart.AppVersion }}{{ end }}
{{- end }}

{{- define "segserve.podSecurity" -}}
runAsNonRoot: true
runAsUser: 1000
runAsGroup: 1000
fsGroup: 1000
seccompProfile:
  type: RuntimeDefault
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
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [""]
  resources: [pods]
  verbs: [get, list, watch]
- apiGroups: [""]
  resources: [pods/log]
  verbs: [get]
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
