//! Every command survives a stdout and a stderr that are closed, full or without a reader: the exit code is the usual one,
//! and an error is told where somebody may read it.

use std::fs::File;
use std::io::{Read, pipe};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use crate::support::http;
use crate::support::ports::free_port;
use crate::support::raw::Raw;
use crate::support::wait::until;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Output {
    /// Read by us.
    Read,
    /// `>&-`
    Closed,
    /// `>/dev/full`
    Full,
    /// A pipe whose reader is gone.
    Broken,
}

const OUTPUTS: [Output; 4] = [Output::Read, Output::Closed, Output::Full, Output::Broken];

impl Output {
    fn stdio(self) -> Stdio {
        match self {
            Self::Read | Self::Closed => Stdio::piped(),
            Self::Full => File::options()
                .write(true)
                .open("/dev/full")
                .expect("a device")
                .into(),
            Self::Broken => Stdio::from(std::os::fd::OwnedFd::from(pipe().expect("a pipe").1)),
        }
    }
}

struct Ended {
    status: ExitStatus,
    stdout: String,
    stderr: String,
}

/// The binary with these outputs, through a shell that closes what shall be closed.
fn command(args: &[&str], stdout: Output, stderr: Output) -> Command {
    let mut script = "exec \"$0\" \"$@\"".to_owned();
    if stdout == Output::Closed {
        script.push_str(" >&-");
    }
    if stderr == Output::Closed {
        script.push_str(" 2>&-");
    }
    let mut command = Command::new("/bin/sh");
    command
        .args(["-c", &script, env!("CARGO_BIN_EXE_ringcable")])
        .args(args)
        .env_clear()
        .stdin(Stdio::null())
        .stdout(stdout.stdio())
        .stderr(stderr.stdio());
    command
}

fn run(args: &[&str], stdout: Output, stderr: Output) -> Ended {
    let mut child = command(args, stdout, stderr)
        .spawn()
        .expect("the binary starts");
    let mut told = String::new();
    if let Some(mut pipe) = child.stderr.take() {
        pipe.read_to_string(&mut told).expect("UTF-8");
    }
    let mut printed = String::new();
    if let Some(mut pipe) = child.stdout.take() {
        pipe.read_to_string(&mut printed).expect("UTF-8");
    }
    Ended {
        status: child.wait().expect("our child"),
        stdout: printed,
        stderr: told,
    }
}

#[test]
fn every_command_survives_outputs_that_take_nothing() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = format!("--port={}", taken.local_addr().expect("an address").port());
    // Arguments, the exit code, and a part of what is told on stderr.
    let table: [(&[&str], i32, &str); 20] = [
        (&["--help"], 0, ""),
        (&["help"], 0, ""),
        (&["--version"], 0, ""),
        (&["version"], 0, ""),
        (&["--print-config"], 0, ""),
        (&["--generate=man"], 0, ""),
        (&["--generate=complete-bash"], 0, ""),
        (&["--generate=poetry"], 1, "poetry"),
        (&["--check=10"], 0, ""),
        (&["--check=many"], 1, "many"),
        (&["--check-config", "--norpc", "--port=0"], 0, ""),
        (&["--check-config"], 1, "no RPC host is set"),
        (&["--nope"], 1, "flag provided but not defined: -nope"),
        (&["--port=abc"], 1, "invalid value \"abc\" for flag -port"),
        (&["--port"], 1, "flag needs an argument"),
        (&["dance"], 1, "unexpected argument \"dance\""),
        (&["--ds"], 1, "ds"),
        (&[], 1, "no RPC host is set"),
        (&["--config-path=/nope.toml", "--norpc"], 1, "/nope.toml"),
        // Deprecated: a notice on stdout, then the log, then the end.
        (
            &["--norpc", "--host=127.0.0.1", "--disable_disconnect", &port],
            1,
            "in use",
        ),
    ];
    for (args, code, told) in table {
        for stdout in OUTPUTS {
            for stderr in OUTPUTS {
                let ended = run(args, stdout, stderr);
                let what = format!(
                    "{args:?} with stdout {stdout:?} and stderr {stderr:?}: {}",
                    ended.stderr
                );
                assert_eq!(
                    (ended.status.code(), ended.status.signal()),
                    (Some(code), None),
                    "{what}"
                );
                assert!(
                    stderr != Output::Read || ended.stderr.contains(told),
                    "{what}"
                );
                assert!(!ended.stderr.contains("panicked"), "{what}");
                assert!(
                    stdout != Output::Read || code != 0 || !ended.stdout.is_empty(),
                    "{what}"
                );
            }
        }
    }
}

#[test]
fn output_that_is_lost_on_a_full_disk_is_told() {
    for args in [
        &["--help"][..],
        &["--print-config"],
        &["--generate=man"],
        &["--check=10"],
    ] {
        let ended = run(args, Output::Full, Output::Read);
        assert!(
            ended
                .stderr
                .contains("cannot write to stdout: No space left on device"),
            "{args:?}: {}",
            ended.stderr
        );
        let ended = run(args, Output::Broken, Output::Read);
        assert_eq!(
            ended.stderr, "",
            "a reader that has gone has seen enough: {args:?}"
        );
    }
}

on_both_drivers! {
    fn a_server_lives_without_outputs(driver: Driver) {
        for output in [Output::Closed, Output::Full, Output::Broken] {
            let port = free_port();
            let listen = format!("--port={port}");
            let args = ["--norpc", "--noauth", "--secret=of-a-test", "--host=127.0.0.1", "--cores=1", "--disable_disconnect", driver.flag(), &listen];
            let mut server = command(&args, output, output).spawn().expect("the binary starts");
            let address = SocketAddr::from(([127, 0, 0, 1], port));
            until("/health to answer 200", || {
                assert_eq!(server.try_wait().expect("our child"), None, "{output:?}");
                http::try_get(address, "/health").filter(|response| response.status == 200)
            });
            Raw::welcomed(address).expect_nothing_before_pong();
            let pid = Pid::from_child(&server);
            kill_process(pid, Signal::TERM).expect("the server is there to be signalled");
            let status = until("the server to end", || server.try_wait().expect("our child"));
            assert_eq!((status.code(), status.signal()), (Some(0), None), "{output:?}");
        }
    }
}
