//! The program: reads the configuration, starts the server, and turns errors into one line and an exit code.

use std::env;
use std::io::Write;
use std::process::ExitCode;

use mimalloc::MiMalloc;
use ringcable::check::Report;
use ringcable::config::{self, CheckRequest, Config, Startup};
use ringcable::{check_config, log, os, server};

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
            // A closed standard output is the reader's choice.
            let _ = std::io::stdout().write_all(text.as_bytes());
            ExitCode::SUCCESS
        }
        Ok(Startup::Check(request)) => check(&request),
        Ok(Startup::CheckConfig(config)) => check_config(&config),
        Ok(Startup::Run(config)) => start(*config),
        Err(error) => {
            if error.usage() {
                println!("Incorrect Usage: {error}\n\n{}", config::help());
            }
            fail(&error, error.exit_code())
        }
    }
}

fn check(request: &CheckRequest) -> ExitCode {
    let report = Report::of_this_host(request);
    // A closed standard output is the reader's choice.
    let _ = write!(std::io::stdout(), "{report}");
    if report.passes() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn check_config(config: &Config) -> ExitCode {
    // A closed standard output is the reader's choice, here and below.
    let _ = write!(std::io::stdout(), "{}", check_config::remarks(config));
    match check_config::verdict(config) {
        Ok(line) => {
            let _ = writeln!(std::io::stdout(), "{line}");
            ExitCode::SUCCESS
        }
        Err(error) => fail(&error, 1),
    }
}

fn start(config: Config) -> ExitCode {
    for notice in &config.notices {
        println!("{notice}");
    }
    if config.console.is_some() {
        log::kept::start();
    }
    log::init(&config.log, &config.node_id);
    match server::run(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error, 1),
    }
}

fn fail(error: &dyn std::error::Error, code: i32) -> ExitCode {
    eprintln!(
        "{}",
        config::stderr_line(std::time::SystemTime::now(), error)
    );
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}
