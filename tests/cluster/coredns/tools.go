//go:build tools

// Package tools names the program that a cluster runs from this module (see
// tests/kubernetes/tools.go).
package tools

import _ "github.com/coredns/coredns"
