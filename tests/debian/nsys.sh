#!/bin/sh
# Unpacks Nsight Systems from Debian's non-free component into a folder of its own: DEST/bin/nsys.
# Nothing is installed into the system, and no root is needed; apt-get and dpkg-deb of a Debian (x86-64) are.
# A plain apt-get install would pull some 30 packages, a GPU driver's library among them.
set -eu

missing() {
  echo "nsys: $1: make test-all needs a Debian (bookworm or later) that reaches a Debian mirror, or nsys on the PATH" >&2
  exit 1
}

dest=$1
mkdir -p "$dest/bin"
dest=$(cd "$dest" && pwd)
if own=$(command -v nsys); then
  ln -sf "$own" "$dest/bin/nsys"
  exit 0
fi
command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null || missing "there is no apt-get and dpkg-deb here"
keys=/usr/share/keyrings/debian-archive-keyring.gpg
[ -r $keys ] || missing "$keys is not there"
codename=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")

mkdir -p "$dest/lists/partial" "$dest/cache/archives/partial" "$dest/packages" "$dest/root" "$dest/parts"
cat > "$dest/debian.sources" <<END
Types: deb
URIs: ${DEBIAN_MIRROR:-http://deb.debian.org/debian}
Suites: $codename
Components: main non-free
Signed-By: $keys
END
get() {
  apt-get -q -o Dir::State::Lists="$dest/lists" -o Dir::Cache="$dest/cache" -o Dir::Etc::SourceParts="$dest/parts" \
    -o Dir::Etc::SourceList="$dest/debian.sources" -o APT::Sandbox::User="" "$@"
}
get update || missing "no package lists of Debian $codename"
(cd "$dest/packages" && get download nsight-systems nsight-systems-target libssh-4) || missing "the packages did not come"
for package in "$dest"/packages/*.deb; do
  dpkg-deb -x "$package" "$dest/root"
done
rm -rf "$dest/packages" "$dest/lists" "$dest/cache"

libraries=$dest/root/usr/lib/x86_64-linux-gnu
mkdir -p "$libraries/nsight-systems"
# The importer must lie beside the target: without it only a raw .qdstrm remains.
ln -sfn "$dest/root/usr/lib/nsight-systems/host-linux-x64" "$libraries/nsight-systems/host-linux-x64"
target=$(find "$dest/root/usr/lib" -path '*target-linux-x64/nsys' | head -n 1)
[ -n "$target" ] || missing "the packages hold no nsys"
cat > "$dest/bin/nsys" <<END
#!/bin/sh
LD_LIBRARY_PATH="$libraries\${LD_LIBRARY_PATH:+:\$LD_LIBRARY_PATH}" exec "$target" "\$@"
END
chmod +x "$dest/bin/nsys"
"$dest/bin/nsys" --version
