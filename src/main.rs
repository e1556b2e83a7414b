//! The program: reads the configuration, starts the server, and turns errors into one line and an exit code.

// These macros panic when stdout or stderr is closed or full; `os::stdio` does not.
#![deny(clippy::print_stdout, clippy::print_stderr)]

use std::env;
use std::fmt::Display;
use std::io::ErrorKind;
use std::process::ExitCode;
use std::time::SystemTime;

use mimalloc::MiMalloc;
use ringcable::check;
use ringcable::check::host::Report;
use ringcable::config::{self, CheckRequest, Config, ConfigError, Startup};
use ringcable::os::stdio::{self, Stream};
use ringcable::{log, os, server};

#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn main() -> ExitCode {
    os::memory::refuse_huge_pages();
    let args: Vec<String> = env::args_os()
        .skip(1)
        .map(|argument| argument.to_string_lossy().into_owned())
        .collect();
    let variables: Vec<(String, String)> = env::vars_os()
        .map(|(name, value)| {
            (
                name.to_string_lossy().into_owned(),
                value.to_string_lossy().into_owned(),
            )
        })
        .collect();
    match config::load(&args, &variables) {
        Ok(Startup::Print(text)) => {
            print(&text);
            ExitCode::SUCCESS
        }
        Ok(Startup::Check(request)) => check(&request),
        Ok(Startup::CheckConfig(config, problems)) => check_config(&config, problems),
        Ok(Startup::Run(config)) => start(*config),
        Err(error) => {
            if error.usage() {
                print(&format!("Incorrect Usage: {error}\n"));
                return fail(&format!("{error}; see ringcable --help"), error.exit_code());
            }
            fail(&error, error.exit_code())
        }
    }
}

fn check(request: &CheckRequest) -> ExitCode {
    let report = Report::of_this_host(request);
    print(&report.to_string());
    if report.passes() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn check_config(config: &Config, problems: Vec<ConfigError>) -> ExitCode {
    print(&check::config::remarks(config).to_string());
    match check::config::verdict(config, problems) {
        Ok(line) => {
            print(&format!("{line}\n"));
            ExitCode::SUCCESS
        }
        Err(problems) => {
            for problem in problems {
                fail(&*problem, 1);
            }
            ExitCode::FAILURE
        }
    }
}

fn start(config: Config) -> ExitCode {
    for notice in &config.notices {
        print(&format!("{notice}\n"));
    }
    if config.console.is_some() {
        log::recent::start();
    }
    if let Err(error) = log::init(&config.log, &config.node_id) {
        return fail(&format!("cannot start the log: {error}"), 1);
    }
    let result = server::run(config);
    log::flush();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error, 1),
    }
}

/// Writes to stdout. A closed pipe is no error: the reader has what it wanted. Any other error, such as a full disk, is
/// reported, because the output is incomplete.
fn print(text: &str) {
    if let Err(error) = stdio::write(Stream::Stdout, text)
        && error.kind() != ErrorKind::BrokenPipe
    {
        tell(&format!("cannot write to stdout: {error}"));
    }
}

fn fail(error: &dyn Display, code: i32) -> ExitCode {
    tell(error);
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}

/// Writes one line to stderr. If stderr fails too, only the exit code is left to show the error.
fn tell(error: &dyn Display) {
    let line = config::stderr_line(SystemTime::now(), error);
    let _nobody_to_tell = stdio::write(Stream::Stderr, &format!("{line}\n"));
}
