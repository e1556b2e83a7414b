#!/usr/bin/env bash
# The release build and what belongs beside it, once for tarball.sh and deb.sh: fills target/package/.
#
#   bin/ringcable    stripped
#   share/           as under /usr/share: man page, completions, documents, examples
#
# Stops when the binary needs more of the system than the documents say.
set -euo pipefail
cd "$(dirname "$0")/../.."

# What the binary may need: Debian 12, Ubuntu 22.04, RHEL 9 and whatever is younger have this glibc or a newer one.
GLIBC_MAX=2.34
LIBRARIES="ld-linux-aarch64.so.1 ld-linux-x86-64.so.2 libc.so.6 libgcc_s.so.1 libm.so.6"

package=target/package
share=$package/share

cargo build --release --locked --bin ringcable
rm -rf "$package"
install -D --strip --mode=755 target/release/ringcable "$package/bin/ringcable"

needs=$(objdump -T "$package/bin/ringcable" | grep -o 'GLIBC_[0-9][0-9.]*' | sort -Vu | tail -n 1)
needs=${needs#GLIBC_}
if [ "$(printf '%s\n' "$needs" "$GLIBC_MAX" | sort -V | tail -n 1)" != "$GLIBC_MAX" ]; then
  echo "$0: the binary needs glibc $needs, and not more than $GLIBC_MAX is promised" >&2
  exit 1
fi
for library in $(objdump -p "$package/bin/ringcable" | sed -n 's/^ *NEEDED *//p'); do
  case " $LIBRARIES " in
    *" $library "*) ;;
    *)
      echo "$0: the binary needs $library, which nobody was told about" >&2
      exit 1
      ;;
  esac
done

# generated <word> <file>: what the binary says about itself.
generated() {
  install -d "$(dirname "$share/$2")"
  "$package/bin/ringcable" --generate "$1" >"$share/$2"
}
generated man man/man1/ringcable.1
generated complete-bash bash-completion/completions/ringcable
generated complete-zsh zsh/vendor-completions/_ringcable
generated complete-fish fish/vendor_completions.d/ringcable.fish
gzip -9n "$share/man/man1/ringcable.1"

doc=$share/doc/ringcable
install -d "$doc/examples"
install -m 644 README.md "$doc/"
install -m 644 docs/COMPATIBILITY.md docs/deployment.md docs/io_uring-in-containers.md "$doc/"
install -m 644 tuning/README.md "$doc/tuning.md"
install -m 644 tuning/seccomp/ringcable.json "$doc/examples/seccomp.json"
install -m 644 tuning/sysctl.d/90-ringcable.conf "$doc/examples/"

echo "target/package: $(stat -c %s "$package/bin/ringcable") bytes, glibc $needs"
