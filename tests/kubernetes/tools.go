//go:build tools

// Package tools names the programs that tests run from this module. Go
// records in go.mod and go.sum only what some file imports, so each main
// package that `cargo xtask kubernetes` may build stands here; the build tag
// keeps the file from ever being compiled.
package tools

import (
	_ "go.etcd.io/etcd/server/v3"
	_ "k8s.io/kubernetes/cmd/kube-apiserver"
	_ "k8s.io/kubernetes/cmd/kube-proxy"
	_ "k8s.io/kubernetes/cmd/kubectl"
)
