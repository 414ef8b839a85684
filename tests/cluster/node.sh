#!/usr/bin/env bash
# The first process of a cluster's node, in mount, pid, uts, ipc and network namespaces of its own. It makes the
# few absolute paths that containerd, kubelet and network plugins use the node's own, starts containerd with the
# images, and then the command that it was given (kubelet). When it ends, the kernel ends everything on the node.
#
# Whoever starts it is in the network namespace already and becomes the parent of the first process, which ends with it.
#
# Environment: NODE and ADDRESS of the node, FOLDER for its files, IMAGES (a folder of archives), IMAGE (another archive, or
# none), PLUGINS (of CNI), CGROUP (v2).
set -euo pipefail

if [ $$ -ne 1 ]; then
    exec unshare --mount --pid --uts --ipc --fork --kill-child --mount-proc --propagation=private bash "$0" "$@"
fi

echo 0 > "$CGROUP/cgroup.procs"
hostname "$NODE"

# A sysfs of this network namespace with the machine's cgroups in it, and a bpffs.
mkdir -p "$FOLDER/sys"
mount -t sysfs sysfs "$FOLDER/sys"
mount --rbind /sys/fs/cgroup "$FOLDER/sys/fs/cgroup"
mount -t bpf bpf "$FOLDER/sys/fs/bpf"
mount --rbind "$FOLDER/sys" /sys

mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p /run/lock /run/netns
for folder in /var/lib /var/log /etc /opt; do
    own=$FOLDER/overlay$folder
    mkdir -p "$own/upper" "$own/work"
    mount -t overlay overlay -o "lowerdir=$folder,upperdir=$own/upper,workdir=$own/work" "$folder"
done
# Overlays make no shared mounts; volumes of pods have to be some.
mkdir -p "$FOLDER/kubelet" /var/lib/kubelet /var/log/pods /var/log/containers /etc/cni/net.d /opt/cni/bin
mount --bind "$FOLDER/kubelet" /var/lib/kubelet
mount --make-rshared /

cp -a "$PLUGINS" /opt/cni/bin/
printf '127.0.0.1 localhost\n%s %s\n' "$ADDRESS" "$NODE" > /etc/hosts
# TEST-NET-1 (RFC 5737): there is no DNS outside of the cluster.
echo 'nameserver 192.0.2.53' > /etc/resolv.conf

containerd --config "$FOLDER/containerd.toml" > "$FOLDER/containerd.log" 2>&1 &
for _ in $(seq 300); do
    if ctr version > /dev/null 2>&1; then break; fi
    sleep 0.1
done
for image in "$IMAGES"/*.tar ${IMAGE:+"$IMAGE"}; do
    ctr --namespace k8s.io images import --local "$image" >> "$FOLDER/images.log" 2>&1
done
"$@" > "$FOLDER/kubelet.log" 2>&1 &

# Processes whose parents have ended become children of this one.
while true; do wait -n || true; sleep 1; done
