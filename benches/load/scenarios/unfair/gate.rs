//! The fairness gate: a few short floods. The limits are so wide that a server on a busy machine meets them, and a server
//! that serves one client at a time does not.

use std::fs;
use std::process::exit;
use std::time::Duration;

use serde::Deserialize;

use super::floods::FLOODS;
use super::{Measured, measure};
use crate::options::Options;
use crate::report::number;
use crate::target::{Driver, Target};

const CORES: usize = 1;
const ATTACKERS: usize = 1;
const WARM_UP: Duration = Duration::from_millis(500);
const TIME: Duration = Duration::from_secs(2);
/// Disturbances only make figures worse. An unfair server fails every try, a disturbed one does not.
const TRIES_MAX: usize = 3;
const DRIVERS: [Driver; 2] = [Driver::IoUring, Driver::Epoll];

/// The part of `benches/gates.toml` for this gate.
#[derive(Deserialize)]
struct Gates {
    fairness: Fairness,
}

#[derive(Deserialize)]
struct Fairness {
    floods: Vec<String>,
    at_most: Vec<Most>,
}

#[derive(Deserialize)]
struct Most {
    figure: String,
    value: f64,
}

pub fn run(options: &Options) {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/gates.toml");
    let text = fs::read_to_string(path).expect("benches/gates.toml can be read");
    let gates: Gates = toml::from_str(&text).expect("benches/gates.toml is as its head says");
    let mut unfair = false;
    for name in gates
        .fairness
        .floods
        .iter()
        .filter(|name| options.wants(name))
    {
        for driver in DRIVERS {
            unfair |= !is_fair(name, driver, &gates.fairness.at_most);
        }
    }
    if unfair {
        eprintln!("One client holds up the others: benches/gates.toml says what is measured.");
        exit(1);
    }
}

fn is_fair(name: &str, driver: Driver, bars: &[Most]) -> bool {
    if driver == Driver::IoUring && io_uring::IoUring::new(8).is_err() {
        println!("skipped: {name}, io_uring: this kernel refuses io_uring");
        return true;
    }
    let flood = FLOODS.iter().find(|flood| flood.name == name);
    let flood = flood.unwrap_or_else(|| panic!("there is no flood {name:?}"));
    let target = Target::ringcable(driver, CORES);
    for attempt in 1.. {
        let measured = measure(&target, flood, ATTACKERS, WARM_UP, TIME);
        let missed = missed(&measured, bars);
        let shown: Vec<String> = bars
            .iter()
            .map(|bar| format!("{} {}", bar.figure, number(value(&measured, &bar.figure))))
            .collect();
        let verdict = if missed.is_empty() {
            "ok".to_owned()
        } else {
            format!("UNFAIR ({})", missed.join(", "))
        };
        println!("{name}, {}: {}: {verdict}", target.name, shown.join(", "));
        if missed.is_empty() {
            return true;
        }
        if attempt == TRIES_MAX {
            return false;
        }
    }
    unreachable!("the tries have an end")
}

/// The names of the missed limits, with their values.
fn missed(measured: &Measured, bars: &[Most]) -> Vec<String> {
    bars.iter()
        .filter(|bar| value(measured, &bar.figure) > bar.value)
        .map(|bar| format!("{} at most {}", bar.figure, number(bar.value)))
        .collect()
}

fn value(measured: &Measured, figure: &str) -> f64 {
    let figures = measured.figures();
    let found = figures.iter().find(|(metric, ..)| *metric == figure);
    found
        .unwrap_or_else(|| panic!("there is no figure {figure:?}"))
        .2
}
