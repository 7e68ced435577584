"""Tests against a real API server: etcd, kube-apiserver and kube-controller-manager.

There is no node: Deployments get their ReplicaSets and Pods, which stay pending.
"""
