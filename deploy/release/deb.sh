#!/usr/bin/env bash
# ringcable_<version>-1_<arch>.deb, in target/debian/. What goes into it stands in Cargo.toml, [package.metadata.deb].
#
#   cargo install --locked cargo-deb && deploy/release/deb.sh
set -euo pipefail
cd "$(dirname "$0")/../.."

command -v cargo-deb >/dev/null || { echo "$0: cargo-deb is missing: cargo install --locked cargo-deb" >&2 && exit 1; }
deploy/release/stage.sh

version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
maintainer=$(sed -n 's/^maintainer = "\(.*\)"/\1/p' Cargo.toml)
printf 'ringcable (%s-1) stable; urgency=medium\n\n  * Built from commit %s.\n\n -- %s  %s\n' \
  "$version" "$(git rev-parse --short HEAD)" "$maintainer" "$(git log -1 --format=%cD)" >target/package/changelog

cargo deb --locked --no-build
