#!/bin/bash
# The first process of a lab host, inside its own net, mount, pid and uts namespaces:
#   host.sh NAME FOLDER ADDRESS GATEWAY CHECKOUT ENVIRONMENT PYTHON
# What a machine of its own would have is made here: name, address, default route, /root, /tmp, /run, /dev/shm, sshd.
# The checkout is covered, so that nothing on a host can import it; its environment of dependencies is read-only.
set -euo pipefail
name=$1 folder=$2 address=$3 gateway=$4 checkout=$5 environment=$6 python=$7

hostname "$name"
until ip link show eth0 &>/dev/null; do sleep 0.05; done
ip link set lo up
ip address add "$address/24" dev eth0
ip link set eth0 up
ip route add default via "$gateway" # without one Ray takes 127.0.0.1 for the node's address; it need not lead anywhere

kept=$folder/kept
mkdir -p "$kept/environment" "$kept/python" "$folder/sshd"
mount --bind "$environment" "$kept/environment"
mount --bind "$python" "$kept/python"
mount --bind "$folder/hosts" /etc/hosts
mount --bind /dev/null /etc/resolv.conf # nobody answers here; without a server a look-up fails at once
host_key=$folder/sshd/host_key
ssh-keygen -q -t ed25519 -N '' -f "$host_key"
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /dev/shm # takes memory only as it is filled
mkdir /run/sshd /run/kept /run/log
mount --bind "$folder/sshd" /run/log
cp "$host_key" /run/host_key && chmod 600 /run/host_key
mkdir /run/kept/environment /run/kept/python
mount --move "$kept/environment" /run/kept/environment
mount --move "$kept/python" /run/kept/python
mount -t tmpfs tmpfs "$checkout"
home=$folder/root scratch=$folder/tmp
mkdir -p /run/kept/scratch && mount --bind "$scratch" /run/kept/scratch
mount --bind "$home" /root
mount --bind /run/kept/scratch /tmp
for part in environment:$environment python:$python; do
    mkdir -p "${part#*:}"
    mount --move "/run/kept/${part%%:*}" "${part#*:}"
    mount -o remount,bind,ro "${part#*:}"
done
umount /run/kept/scratch
# The package of the checkout is installed there as a link to it; a host must see the dependencies alone.
site=$("$environment/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
for link in "$site"/_dsprobe.pth; do [ -e "$link" ] && mount --bind /dev/null "$link"; done
for record in "$site"/dsprobe-*.dist-info; do [ -d "$record" ] && mount -t tmpfs tmpfs "$record"; done

# What an administrator put there: an environment with all dependencies and without the package; its pip knows no index.
own=/root/dsprobe
"$environment/bin/python" -m venv --without-pip "$own"
echo "$site" >"$("$own/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/dependencies.pth"
for command in ray pip; do
    { echo "#!$own/bin/python" && tail -n +2 "$environment/bin/$command"; } >"$own/bin/$command"
    chmod +x "$own/bin/$command"
done
mkdir -p /root/.config/pip
printf '[global]\nno-index = true\ndisable-pip-version-check = true\n' >/root/.config/pip/pip.conf
echo "export PATH=$own/bin:\$PATH" >/root/.bashrc
echo '. "$HOME/.bashrc"' >/root/.profile
# Everything of the machine that is not this host's own can only be read.
mount -o remount,bind,ro /
exec env -i PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin HOME=/root \
    /usr/sbin/sshd -D -e -f /dev/null -h /run/host_key -o UsePAM=no -o PermitRootLogin=prohibit-password \
    -o PasswordAuthentication=no -o PidFile=none -o StrictModes=no -o PrintMotd=no -o MaxStartups=100 2>/run/log/log
