//go:build tools

// Package tools names the programs that a cluster runs from this module (see
// tests/kubernetes/tools.go). It is a module of its own, since containerd and
// Kubernetes need not agree on the versions of what both use.
package tools

import (
	_ "github.com/containerd/containerd/v2/cmd/containerd"
	_ "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2"
	_ "github.com/containerd/containerd/v2/cmd/ctr"
	_ "github.com/containernetworking/cni/cnitool"
)
