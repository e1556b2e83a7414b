"""The image: how it is started, whom it runs as, its health check, and both drivers under real seccomp profiles.

Run by .ci/container, inside a network namespace of its own.
"""

import json
import os
import pathlib
import re
import subprocess
import tempfile
import time
import unittest

from cable import Cable
from support import ALLOWING, IMAGE, Container, chat, eventually, run, status

# Without an app: anybody may connect and listen to public streams, and broadcasts need no token.
PUBLIC = ("--env=ANYCABLE_PUBLIC=true", "--env=ANYCABLE_NORPC=true", "--env=ANYCABLE_HTTP_BROADCAST_PORT=8080")


def profile(**changes):
    """A file with the profile of this repository, the rule with the three calls replaced."""
    content = json.loads(ALLOWING.read_text())
    content["syscalls"] = [rule for rule in content["syscalls"] if "io_uring_setup" not in rule["names"]]
    if changes:
        content["syscalls"].append({"names": ["io_uring_setup", "io_uring_enter", "io_uring_register"], "args": [], **changes})
    file = tempfile.NamedTemporaryFile("w", suffix=".json", delete=False)
    with file:
        json.dump(content, file)
    return file.name


class Drivers(unittest.TestCase):
    def serve(self, seccomp, expected):
        """Starts under the profile, on the driver that the profile leaves it, healthy, and a broadcast arrives."""
        options = [*PUBLIC, *([f"--security-opt=seccomp={seccomp}"] if seccomp else [])]
        with Container(options=options) as container:
            line = container.ready().line("driver ")
            self.assertRegex(line, expected)
            self.assertTrue(container.healthy())
            # What Compose files bring.
            self.assertEqual(container.execute("curl", "-f", "http://localhost:8080/health"), 0)
            self.assertEqual(chat(8080), {"text": "hello"})
            print(f"\n  {line.split('INF ')[-1]}")

    def test_io_uring_where_the_profile_allows_it(self):
        self.serve(ALLOWING, r"driver io_uring \(the kernel allows it\)")

    def test_epoll_where_it_is_refused_as_docker_refuses_it(self):
        refusing = profile()
        self.serve(refusing, r"driver epoll \(io_uring is blocked by a seccomp profile .*Operation not permitted")
        os.unlink(refusing)

    def test_epoll_where_it_is_hidden(self):
        hiding = profile(action="SCMP_ACT_ERRNO", errnoRet=38)
        self.serve(hiding, r"driver epoll \(io_uring is unknown to this kernel, or hidden by a seccomp profile")
        os.unlink(hiding)

    def test_under_the_default_profile_of_podman_it_serves_on_what_it_gets(self):
        self.serve(None, r"driver (io_uring|epoll) \(")


class Starting(unittest.TestCase):
    def port_of(self, *args, options=()):
        with Container(*args, "--norpc", options=options) as container:
            line = container.ready().line("Handle health requests at ")
            self.assertTrue(container.healthy(), "the health check follows")
            return re.search(r":(\d+/\S*)", line)[1]

    def test_flags_alone(self):
        self.assertEqual(self.port_of(), "8080/health")
        self.assertEqual(self.port_of("--port", "9000"), "9000/health")

    def test_the_programs_name_and_flags(self):
        for name in ["anycable-go", "ringcable", "/usr/local/bin/anycable-go"]:
            self.assertEqual(self.port_of(name, "--port=9001"), "9001/health")

    def test_the_references_binary_as_entry_point(self):
        self.assertEqual(self.port_of("--port=9002", options=["--entrypoint=anycable-go"]), "9002/health")

    def test_a_command_that_is_another_program_is_refused_and_named(self):
        with Container("bash", "-c", "true") as container:
            eventually("its end", lambda: container.state()["Status"] == "exited")
            self.assertEqual(container.state()["ExitCode"], 1)
            self.assertIn('unexpected argument "bash"', container.log())

    def test_variables_and_a_file(self):
        self.assertEqual(self.port_of(options=["--env=ANYCABLE_PORT=9003"]), "9003/health")
        self.assertEqual(self.port_of(options=["--env=PORT=9004", "--env=ANYCABLE_HEALTH_PATH=/live"]), "9004/live")
        with tempfile.TemporaryDirectory() as folder:
            os.chmod(folder, 0o755)
            pathlib.Path(folder, "anycable.toml").write_text('[server]\nport = 9005\nhealth_path = "/up"\n')
            self.assertEqual(self.port_of(options=[f"--volume={folder}:/etc/anycable:ro"]), "9005/up")

    def test_an_init_before_it(self):
        if not pathlib.Path("/usr/libexec/podman/catatonit").exists():
            self.fail("podman's init, catatonit, is not installed")
        self.assertEqual(self.port_of("--port=9006", options=["--init"]), "9006/health")

    def test_tls(self):
        with tempfile.TemporaryDirectory() as folder:
            os.chmod(folder, 0o755)
            run("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=chat.example.com",
                "-keyout", f"{folder}/key.pem", "-out", f"{folder}/cert.pem")
            os.chmod(f"{folder}/key.pem", 0o644)
            files = ["--ssl_cert=/tls/cert.pem", "--ssl_key=/tls/key.pem", "--port=9443"]
            self.assertEqual(self.port_of(*files, options=[f"--volume={folder}:/tls:ro"]), "9443/health")


class Image(unittest.TestCase):
    def test_what_it_says_about_itself(self):
        config = json.loads(run("podman", "image", "inspect", IMAGE))[0]
        size = config["Size"]
        print(f"\n  image: {size / 1e6:.1f} MB")
        config = config["Config"]
        self.assertEqual(config["ExposedPorts"], {"8080/tcp": {}})
        self.assertEqual(config["User"], "65534:65534")
        self.assertEqual(config["Entrypoint"], ["/usr/local/bin/ringcable"])
        self.assertFalse(config.get("Cmd"))
        self.assertIn("ANYCABLE_HOST=0.0.0.0", config["Env"])

    def test_it_needs_no_right_and_no_place_to_write(self):
        hard = ["--read-only", "--cap-drop=all", "--security-opt=no-new-privileges", *PUBLIC]
        with Container(options=hard) as container:
            container.ready()
            self.assertTrue(container.healthy())
            self.assertEqual(chat(8080), {"text": "hello"})
            listed = run("podman", "exec", container.id, "cat", "/proc/1/status")
            self.assertRegex(listed, r"Uid:\s+65534\s+65534")
            self.assertRegex(listed, r"CapEff:\s+0+\n")
            self.assertEqual(run("podman", "exec", container.id, "readlink", "/proc/1/exe").strip(), "/usr/local/bin/ringcable")

    def test_health_is_red_without_a_server_and_with_a_stopped_one(self):
        with Container("100", options=["--entrypoint=sleep"]) as container:
            self.assertFalse(container.healthy())
        with Container("--norpc", "--cores=1") as container:
            container.ready()
            self.assertTrue(container.healthy())
            run("podman", "kill", "--signal=STOP", container.id)
            self.assertFalse(container.healthy())
            run("podman", "kill", "--signal=CONT", container.id)
            self.assertTrue(container.healthy())

    def test_stop_says_goodbye_and_ends_with_0(self):
        with Container(options=PUBLIC) as container:
            container.ready()
            with Cable(8080) as cable:
                cable.subscribe(channel="$pubsub", stream_name="news")
                started = time.monotonic()
                stopping = subprocess.Popen(["podman", "stop", "--time=20", container.id], stdout=subprocess.DEVNULL)
                goodbye = cable.next(lambda message: message.get("type") == "disconnect")
                self.assertEqual(goodbye, {"type": "disconnect", "reason": "server_restart", "reconnect": True})
                with self.assertRaises(ConnectionError):
                    cable.next(lambda message: False)
                self.assertEqual(cable.close_code, 1001)
                stopping.wait(timeout=30)
            self.assertLess(time.monotonic() - started, 15)
            self.assertEqual(container.state()["ExitCode"], 0)

    def test_published_listener_answers_outside_the_container(self):
        with Container("--norpc") as container:
            container.ready()
            self.assertEqual(status("http://127.0.0.1:8080/health"), 200)


if __name__ == "__main__":
    unittest.main(verbosity=2)
