#!/usr/bin/env bash
# ringcable-<version>-<arch>-linux-gnu.tar.gz and its checksum, in target/dist/. Needs Rust, a C compiler and binutils.
#
#   deploy/release/tarball.sh
#
# The same commit gives the same archive, bit for bit, when the toolchain is the same and so is the path of the repository.
set -euo pipefail
cd "$(dirname "$0")/../.."

deploy/release/stage.sh

version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
name=ringcable-$version-$(uname -m)-linux-gnu
dist=target/dist
root=$dist/$name

rm -rf "$root"
install -d "$root"
cp -r target/package/bin target/package/share "$root/"
# For start commands that name the reference's binary.
ln -s ringcable "$root/bin/anycable-go"
install -m 644 LICENSE README.md "$root/"
install -d "$root/systemd"
install -m 644 deploy/systemd/ringcable.* "$root/systemd/"

# The commit's time, or the caller's, so that the archive does not depend on the clock.
epoch=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}
tar --create --sort=name --owner=0 --group=0 --numeric-owner --mtime="@$epoch" --directory="$dist" "$name" |
  gzip -9n >"$dist/$name.tar.gz"
(cd "$dist" && sha256sum "$name.tar.gz" >"$name.tar.gz.sha256" && cat "$name.tar.gz.sha256")
rm -rf "$root"
