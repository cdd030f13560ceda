#!/bin/sh
# Sees to it that chromium is on the PATH: it comes from Debian, which installs it as root alone.
set -eu

missing() {
  echo "chromium: $1: make test-all needs it on the PATH, or root on a Debian (bookworm or later) that reaches a Debian mirror" >&2
  exit 1
}

if ! command -v chromium >/dev/null; then
  command -v apt-get >/dev/null || missing "there is none, and no apt-get here"
  [ "$(id -u)" = 0 ] || missing "there is none, and only root can install it"
  apt-get -q update || missing "no package lists"
  DEBIAN_FRONTEND=noninteractive apt-get -q install -y --no-install-recommends chromium fonts-dejavu-core \
    || missing "the package did not come"
fi
chromium --version
