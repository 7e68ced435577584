{{- define "kars-operator.selector" -}}
app.kubernetes.io/name: kars-operator
{{- end }}

{{- define "kars-operator.labels" -}}
{{ include "kars-operator.selector" . }}
app.kubernetes.io/part-of: kars-router
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{- /* An image: its repository, and a digest if there is one, otherwise a tag. */}}
{{- define "kars-operator.image" -}}
{{- $image := index . 0 -}}
{{- $chart := index . 1 -}}
{{- if $image.digest -}}
{{ $image.repository }}@{{ $image.digest }}
{{- else -}}
{{ $image.repository }}:{{ $image.tag | default $chart.AppVersion }}
{{- end -}}
{{- end }}

{{- /* KEY=VALUE pairs with blanks between them, as a variable holds an option that may be repeated. */}}
{{- define "kars-operator.pairs" -}}
{{- $pairs := list -}}
{{- range $key, $value := . -}}
{{- $pairs = append $pairs (printf "%s=%s" $key $value) -}}
{{- end -}}
{{- join " " $pairs -}}
{{- end }}

{{- define "kars-operator.dnsLabels" -}}
{{ .Values.dns.podLabels | default (dict "k8s-app" "kube-dns") | toYaml }}
{{- end }}

{{- define "kars-operator.subjects" -}}
- kind: ServiceAccount
  name: kars-operator
  namespace: {{ .Release.Namespace }}
{{- end }}

{{- /* Rights on what is declared: needed where it is looked at. */}}
{{- define "kars-operator.rules.declared" -}}
# What is declared is read, and its status written.
- apiGroups: [kars.azure.com]
  resources: [karssandboxes, mcpservers, toolpolicies]
  verbs: [list, watch]
# Asked for when something that was made for one is missing: it may be gone itself.
- apiGroups: [kars.azure.com]
  resources: [karssandboxes]
  verbs: [get]
- apiGroups: [kars.azure.com]
  resources: [karssandboxes/status, mcpservers/status, toolpolicies/status]
  verbs: [patch]
# Some clusters ask for this of whoever makes an object whose owner has to wait for its end.
- apiGroups: [kars.azure.com]
  resources: [karssandboxes/finalizers]
  verbs: [update]
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [create, patch]
{{- end }}

{{- /* Rights on what is made: needed where sandboxes are. */}}
{{- define "kars-operator.rules.made" -}}
# What a sandbox is made of. `create` and `patch` are two halves of a server-side apply.
- apiGroups: [""]
  resources: [configmaps, serviceaccounts]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [apps]
  resources: [deployments]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [networking.k8s.io]
  resources: [networkpolicies]
  verbs: [get, list, watch, create, patch, delete]
# Where routers answer.
- apiGroups: [""]
  resources: [pods]
  verbs: [list, watch]
# Looked for in any cluster.
- apiGroups: [cilium.io]
  resources: [ciliumnetworkpolicies]
  verbs: [list, watch]
{{- end }}

{{- /* Rights on what may be anywhere. */}}
{{- define "kars-operator.rules.anywhere" -}}
# Which pods are behind the Services of servers.
- apiGroups: [""]
  resources: [services]
  verbs: [list, watch]
{{- end }}

{{- define "kars-operator.rules.namespaces" -}}
- apiGroups: [""]
  resources: [namespaces]
  verbs: [get, list, watch, create, patch, delete]
# The finalizer that keeps a sandbox until its namespace is gone.
- apiGroups: [kars.azure.com]
  resources: [karssandboxes]
  verbs: [patch]
{{- end }}

{{- define "kars-operator.rules.cilium" -}}
- apiGroups: [cilium.io]
  resources: [ciliumnetworkpolicies]
  verbs: [get, create, patch, delete]
{{- end }}

{{- /*
A role and its binding, from (root, the name's ending, the namespace or "" for the whole cluster,
the templates with its rules). Roles of the cluster are named after the release.
*/}}
{{- define "kars-operator.role" -}}
{{- $root := index . 0 -}}
{{- $name := printf "%s%s" $root.Release.Name (index . 1) -}}
{{- $namespace := index . 2 -}}
{{- $kind := ternary "Role" "ClusterRole" (ne $namespace "") -}}
apiVersion: rbac.authorization.k8s.io/v1
kind: {{ $kind }}
metadata:
  name: {{ $name }}
  {{- with $namespace }}
  namespace: {{ . }}
  {{- end }}
  labels:
    {{- include "kars-operator.labels" $root | nindent 4 }}
rules:
  {{- range index . 3 }}
  {{- include (printf "kars-operator.rules.%s" .) $root | nindent 2 }}
  {{- end }}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: {{ $kind }}Binding
metadata:
  name: {{ $name }}
  {{- with $namespace }}
  namespace: {{ . }}
  {{- end }}
  labels:
    {{- include "kars-operator.labels" $root | nindent 4 }}
roleRef:
  apiGroup: rbac.authorization.k8s.io
  kind: {{ $kind }}
  name: {{ $name }}
subjects:
  {{- include "kars-operator.subjects" $root | nindent 2 }}
{{- end }}

{{- define "kars-operator.rules.election" -}}
# A name cannot be asked of what is yet to be made.
- apiGroups: [coordination.k8s.io]
  resources: [leases]
  verbs: [create]
- apiGroups: [coordination.k8s.io]
  resources: [leases]
  resourceNames: [kars-operator]
  verbs: [get, update]
{{- end }}
