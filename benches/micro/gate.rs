//! The instruction gate: compares the counts of this build with those in `benches/gates.toml`.

use std::collections::BTreeMap;
use std::fs;
use std::process::ExitCode;

use super::{STEPS, counts};

const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/gates.toml");
/// The table of this gate in the file.
const TABLE: &str = "instructions";
/// A count may be at most this multiple of the stored one.
const GROWTH_MAX: f64 = 1.10;
/// When a count is below this multiple of the stored one, the gate suggests to store it.
const GAIN_WORTH_KEEPING: f64 = 0.90;

const HOW_TO_RENEW: &str = "cargo bench --bench micro -- --renew";

/// Fails when a step takes more instructions than the file allows, or the file and the steps do not match.
pub fn check() -> ExitCode {
    match compare() {
        Ok(0) => {
            println!("instruction gate: passed");
            ExitCode::SUCCESS
        }
        Ok(failures) => {
            eprintln!(
                "instruction gate: FAILED, {failures} of the lines above. Where that is intended, write the new counts \
                 into benches/gates.toml with `{HOW_TO_RENEW}` and say in the commit why they grew."
            );
            ExitCode::FAILURE
        }
        Err(error) => fail(&error),
    }
}

/// Writes the counts of this build into the file.
pub fn renew() -> ExitCode {
    let renewed = counts::measure()
        .map_err(|error| error.to_string())
        .and_then(|counts| {
            let file = read()?;
            fs::write(FILE, with_table(&file, &counts)).map_err(|error| format!("{FILE}: {error}"))
        });
    match renewed {
        Ok(()) => {
            println!("instruction gate: {} steps written to {FILE}", STEPS.len());
            ExitCode::SUCCESS
        }
        Err(error) => fail(&error),
    }
}

fn fail(error: &str) -> ExitCode {
    eprintln!("instruction gate: {error}");
    ExitCode::FAILURE
}

/// Prints a line for each step; returns how many steps miss their limits.
fn compare() -> Result<usize, String> {
    let mut kept = kept_counts(&read()?)?;
    let counts = counts::measure().map_err(|error| error.to_string())?;
    let mut failures = 0;
    println!(
        "{:<46} {:>10} {:>10} {:>8}",
        "instructions", "kept", "now", "change"
    );
    for ((name, _), now) in STEPS.iter().zip(counts) {
        let Some(kept) = kept.remove(*name) else {
            failures += 1;
            println!(
                "{name:<46} {:>10} {now:>10.1}           <- not in the file",
                "-"
            );
            continue;
        };
        let growth = now / kept;
        let remark = if growth > GROWTH_MAX {
            failures += 1;
            "  <- grew by more than 10 %"
        } else if growth < GAIN_WORTH_KEEPING {
            "  (better: renew the file to keep it)"
        } else {
            ""
        };
        let percent = (growth - 1.0) * 100.0;
        println!("{name:<46} {kept:>10.1} {now:>10.1} {percent:>+7.1}%{remark}");
    }
    for name in kept.keys() {
        failures += 1;
        println!("{name:<46} is in the file, but there is no such step");
    }
    Ok(failures)
}

fn read() -> Result<String, String> {
    fs::read_to_string(FILE).map_err(|error| format!("{FILE}: {error}"))
}

fn kept_counts(file: &str) -> Result<BTreeMap<String, f64>, String> {
    let mut tables: BTreeMap<String, toml::Value> =
        toml::from_str(file).map_err(|error| format!("{FILE}: {error}"))?;
    match tables.remove(TABLE) {
        Some(table) => table
            .try_into()
            .map_err(|error| format!("{FILE}: [{TABLE}]: {error}")),
        None => Ok(BTreeMap::new()),
    }
}

/// The text of the file with this gate's table replaced; the table ends at an empty line. The rest of the text stays.
fn with_table(file: &str, counts: &[f64]) -> String {
    let header = format!("[{TABLE}]");
    let (before, table) = file.split_once(&header).unwrap_or((file, ""));
    let after = table.split_once("\n\n").map(|(_, after)| after);
    let mut text = format!("{before}{header}\n");
    for ((name, _), count) in STEPS.iter().zip(counts) {
        text.push_str(&format!("\"{name}\" = {count:.1}\n"));
    }
    if let Some(after) = after {
        text.push('\n');
        text.push_str(after);
    }
    text
}
