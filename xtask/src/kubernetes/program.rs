//! The Go module of each program, and the parameters of its build.

use clap::ValueEnum;

/// A Go module of this repository that names programs in its `tools.go`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Module {
    Kubernetes,
    Containerd,
    CoreDns,
}

impl Module {
    /// The module's folder in the repository.
    pub fn folder(self) -> &'static str {
        match self {
            Self::Kubernetes => "tests/kubernetes",
            Self::Containerd => "tests/cluster/containerd",
            Self::CoreDns => "tests/cluster/coredns",
        }
    }

    /// The name of the module's folder in the cache.
    pub fn name(self) -> &'static str {
        match self {
            Self::Kubernetes => "kubernetes",
            Self::Containerd => "containerd",
            Self::CoreDns => "coredns",
        }
    }

    /// The required module whose version is that of the programs.
    pub fn requires(self) -> &'static str {
        match self {
            Self::Kubernetes => "k8s.io/kubernetes",
            Self::Containerd => "github.com/containerd/containerd/v2",
            Self::CoreDns => "github.com/coredns/coredns",
        }
    }

    /// The flags by which the linker writes the version into a program.
    pub fn stamp(self, version: &str) -> String {
        match self {
            Self::Kubernetes => {
                let mut numbers = version.trim_start_matches('v').split('.');
                let (major, minor) = (
                    numbers.next().unwrap_or_default(),
                    numbers.next().unwrap_or_default(),
                );
                // Without these a client sees a server of version 0.0.0 and rejects it as too old.
                let variable = "-X k8s.io/component-base/version";
                format!(
                    "{variable}.gitVersion={version} {variable}.gitMajor={major} {variable}.gitMinor={minor}"
                )
            }
            Self::Containerd => format!("-X {}/version.Version={version}", self.requires()),
            Self::CoreDns => String::new(),
        }
    }

    /// Build tags that leave out parts which need libraries of the machine.
    pub fn tags(self) -> &'static str {
        match self {
            Self::Containerd => "no_btrfs,no_devmapper,no_zfs",
            Self::Kubernetes | Self::CoreDns => "",
        }
    }
}

/// A program that one of the Go modules can build.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Program {
    Etcd,
    KubeApiserver,
    KubeControllerManager,
    KubeScheduler,
    Kubectl,
    Kubelet,
    KubeProxy,
    /// The suite of end-to-end tests
    #[value(name = "e2e.test")]
    E2eTest,
    /// The program that runs several processes of the suite side by side
    Ginkgo,
    /// The suite's client and server for many protocols
    Agnhost,
    /// The suite's sender of packets that belong to no connection
    #[value(name = "regression-issue-74839")]
    OutOfWindow,
    Containerd,
    ContainerdShimRuncV2,
    Ctr,
    /// The program that calls network plugins as container runtimes do
    Cnitool,
    /// The program that calls container runtimes as kubelets do
    Cri,
    Coredns,
}

impl Program {
    /// The programs that make containers without a cluster.
    pub const OF_RUNTIMES: &[Self] = &[
        Self::Containerd,
        Self::ContainerdShimRuncV2,
        Self::Ctr,
        Self::Cnitool,
        Self::Cri,
    ];

    /// The programs of a cluster.
    pub const OF_A_CLUSTER: &[Self] = &[
        Self::Etcd,
        Self::KubeApiserver,
        Self::KubeControllerManager,
        Self::KubeScheduler,
        Self::Kubectl,
        Self::Kubelet,
        Self::KubeProxy,
        Self::Containerd,
        Self::ContainerdShimRuncV2,
        Self::Ctr,
        Self::Coredns,
        Self::Agnhost,
        Self::OutOfWindow,
    ];

    /// The programs that run the suite in a cluster.
    pub const OF_THE_SUITE: &[Self] = &[Self::E2eTest, Self::Ginkgo];

    /// The name of the binary.
    pub fn name(self) -> &'static str {
        match self {
            Self::Etcd => "etcd",
            Self::KubeApiserver => "kube-apiserver",
            Self::KubeControllerManager => "kube-controller-manager",
            Self::KubeScheduler => "kube-scheduler",
            Self::Kubectl => "kubectl",
            Self::Kubelet => "kubelet",
            Self::KubeProxy => "kube-proxy",
            Self::E2eTest => "e2e.test",
            Self::Ginkgo => "ginkgo",
            Self::Agnhost => "agnhost",
            Self::OutOfWindow => "regression-issue-74839",
            Self::Containerd => "containerd",
            Self::ContainerdShimRuncV2 => "containerd-shim-runc-v2",
            Self::Ctr => "ctr",
            Self::Cnitool => "cnitool",
            Self::Cri => "cri",
            Self::Coredns => "coredns",
        }
    }

    pub fn module(self) -> Module {
        match self {
            Self::Containerd | Self::ContainerdShimRuncV2 | Self::Ctr | Self::Cnitool | Self::Cri => {
                Module::Containerd
            }
            Self::Coredns => Module::CoreDns,
            _ => Module::Kubernetes,
        }
    }

    /// The Go package of the program's `main`.
    pub fn package(self) -> String {
        match self {
            Self::Etcd => "go.etcd.io/etcd/server/v3".to_owned(),
            Self::E2eTest => "k8s.io/kubernetes/test/e2e".to_owned(),
            Self::Ginkgo => "github.com/onsi/ginkgo/v2/ginkgo".to_owned(),
            Self::Agnhost | Self::OutOfWindow => format!("k8s.io/kubernetes/test/images/{}", self.name()),
            Self::Coredns => Module::CoreDns.requires().to_owned(),
            Self::Cnitool => "github.com/containernetworking/cni/cnitool".to_owned(),
            Self::Cri => "millrace.test/containerd/cri".to_owned(),
            Self::Containerd | Self::ContainerdShimRuncV2 | Self::Ctr => {
                format!("{}/cmd/{}", Module::Containerd.requires(), self.name())
            }
            _ => format!("k8s.io/kubernetes/cmd/{}", self.name()),
        }
    }

    /// Whether the source is in this repository, where it may change without a version.
    pub fn is_ours(self) -> bool {
        self == Self::Cri
    }

    /// Whether the program is a package of tests, which `go test` compiles.
    pub fn is_test(self) -> bool {
        self == Self::E2eTest
    }
}
