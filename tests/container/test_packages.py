"""The .deb in a Debian that boots, the archive on a bare one, and the Kubernetes manifests against the API's schemas.

Run by .ci/container, which has built them.
"""

import subprocess
import unittest

import kubernetes_validate
import yaml

from support import ROOT, Container, eventually, run, status

KUBERNETES_VERSION = "1.32"


def only(folder, pattern):
    """The one file that was built."""
    (file,) = (ROOT / "target" / folder).glob(pattern)
    return file


class Package(unittest.TestCase):
    """A container with systemd as PID 1: what an operator types, in order."""

    @classmethod
    def setUpClass(cls):
        deb = only("debian", "*.deb")
        cls.contents = run("dpkg-deb", "--contents", deb)
        # Privileged: systemd makes namespaces and filters for the unit.
        options = ["--systemd=always", "--privileged", f"--volume={deb}:/ringcable.deb:ro"]
        cls.debian = Container(image="localhost/systemd", options=options)
        cls.addClassCleanup(cls.debian.__exit__)
        booted = lambda: cls.root("systemctl is-system-running || true").strip() in ("running", "degraded")
        eventually("the boot", booted, patience=60)

    @classmethod
    def root(cls, script):
        """What a shell of root in there prints."""
        return run("podman", "exec", cls.debian.id, "sh", "-euc", script)

    def test_0_it_installs_and_does_not_start(self):
        self.root("dpkg --install /ringcable.deb")
        self.assertRegex(self.root("ringcable --version"), r"^\d+\.\d+\.\d+$")
        self.assertIn("/usr/sbin/nologin", self.root("getent passwd ringcable"))
        self.assertEqual(self.root("systemctl is-enabled ringcable || true").strip(), "disabled")
        self.assertEqual(self.root("systemctl is-active ringcable || true").strip(), "inactive")
        self.assertEqual(self.root("stat -c '%a %U' /etc/default/ringcable").strip(), "640 root")

    def test_1_the_unit_is_sound_and_hardened(self):
        self.root("systemd-analyze verify --man=no ringcable.service")
        # Tenths: documents say 1.2.
        report = self.root("systemd-analyze security --offline=true --threshold=12 /lib/systemd/system/ringcable.service")
        print(f"\n  {report.splitlines()[-1]}")

    def test_2_without_an_app_it_says_what_is_missing(self):
        self.root("systemctl start ringcable && exit 1 || true")
        self.assertIn("no RPC host is set", self.root("journalctl --unit=ringcable"))
        self.root("systemctl stop ringcable; systemctl reset-failed ringcable || true")

    def test_3_it_starts_hardened_and_healthy(self):
        self.root("echo ANYCABLE_NORPC=true >>/etc/default/ringcable; systemctl enable --now ringcable")
        # Type=notify: it listens when `start` has returned.
        self.root("curl --fail --silent http://localhost:8080/health")
        journal = self.root("journalctl --unit=ringcable")
        self.assertIn("driver io_uring (", journal)
        self.assertNotIn("refused to this shard", journal)
        process = self.root("cat /proc/$(systemctl show --property=MainPID --value ringcable)/status")
        self.assertRegex(process, r"CapEff:\s+0+\n")
        self.assertRegex(process, r"Seccomp:\s+2\n")
        self.assertRegex(process, r"NoNewPrivs:\s+1\n")

    def test_4_reload_and_stop_leave_nothing_behind(self):
        self.root("systemctl reload ringcable && systemctl is-active ringcable && curl --fail --silent http://localhost:8080/health")
        self.root("systemctl stop ringcable")
        self.assertEqual(self.root("systemctl show --property=Result --value ringcable").strip(), "success")
        self.root("dpkg --purge ringcable")
        self.assertEqual(self.root("ls /usr/bin/ringcable /etc/default/ringcable 2>/dev/null || true"), "")

    def test_it_has_what_belongs_to_a_package(self):
        for path in [
            "./usr/bin/ringcable",
            "./etc/default/ringcable",
            "./usr/lib/systemd/system/ringcable.service",
            "./usr/lib/sysusers.d/ringcable.conf",
            "./usr/share/man/man1/ringcable.1.gz",
            "./usr/share/bash-completion/completions/ringcable",
            "./usr/share/doc/ringcable/copyright",
            "./usr/share/doc/ringcable/changelog.Debian.gz",
        ]:
            self.assertIn(f" {path}\n", self.contents)
        self.assertNotIn("anycable-go", self.contents)


class Archive(unittest.TestCase):
    def test_it_runs_on_a_bare_debian(self):
        archive = only("dist", "*.tar.gz")
        subprocess.run(["sha256sum", "--check", "--quiet", f"{archive.name}.sha256"], cwd=archive.parent, check=True)
        folder = archive.name.removesuffix(".tar.gz")
        script = f"tar -xf /{archive.name} -C /opt && exec /opt/{folder}/bin/anycable-go --norpc --port=9100"
        options = ["--entrypoint=sh", f"--volume={archive}:/{archive.name}:ro"]
        with Container("-euc", script, image="localhost/debian", options=options) as container:
            container.ready()
            self.assertEqual(status("http://127.0.0.1:9100/health"), 200)


class Manifests(unittest.TestCase):
    def test_the_api_takes_them(self):
        kinds = []
        for file in sorted((ROOT / "deploy/kubernetes/base").glob("*.yaml")):
            document = yaml.safe_load(file.read_text())
            # Kustomize's own, and the operator's: no part of the API.
            if "kind" in document and document["kind"] != "ServiceMonitor":
                kubernetes_validate.validate(document, KUBERNETES_VERSION, strict=True)
                kinds.append(document["kind"])
        self.assertEqual(kinds, ["Deployment", "Ingress", "PodDisruptionBudget", "Service"])

    def test_every_file_that_is_named_is_there(self):
        base = ROOT / "deploy/kubernetes/base"
        for name in yaml.safe_load((base / "kustomization.yaml").read_text())["resources"]:
            self.assertTrue((base / name).is_file(), name)
        for file in [*(ROOT / "deploy").rglob("*.yml"), *(ROOT / "deploy").rglob("*.yaml")]:
            self.assertTrue(yaml.safe_load(file.read_text()), file)


if __name__ == "__main__":
    unittest.main(verbosity=2)
