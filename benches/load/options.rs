//! The command line of the tool.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::exit;

use crate::process::machine_cpus;
use crate::target::{Driver, Target};

/// A scenario for the command line.
pub struct Scenario {
    pub name: &'static str,
    pub about: &'static str,
    /// Part of another scenario that runs in its own process; not in `--help`.
    pub hidden: bool,
    pub run: fn(&Options),
}

/// The options as given. Where an option is `None`, each scenario uses its own default.
#[derive(Clone, Debug)]
pub struct Options {
    pub scenario: String,
    pub peer: Option<PathBuf>,
    /// Another build of ringcable.
    pub before: Option<PathBuf>,
    pub drivers: Vec<Driver>,
    /// CPU cores of the server.
    pub cores: usize,
    pub runs: usize,
    /// Client threads.
    pub threads: usize,
    pub clients: Option<usize>,
    pub seconds: Option<u64>,
    pub payload_bytes: Option<usize>,
    pub streams: Option<usize>,
    /// Numbers of simultaneous attackers; empty: the scenario's own numbers.
    pub attackers: Vec<usize>,
    /// Numbers of shards; empty: the scenario's own numbers.
    pub shards: Vec<usize>,
    /// Selects the cases whose name contains this; empty: all cases.
    pub case: String,
    /// The command line as typed, without the folder of the other binary.
    pub shown: String,
}

const HELP: &str = "\
Options
  --peer PATH        also measure this binary, started with the same flags, in turns with ringcable
  --before PATH      shards: also measure this other build of ringcable, in turns
  --driver NAMES     io_uring, epoll or both with a comma, for ringcable  [io_uring]
  --cores N          cores of each server  [1]
  --runs N           runs, of which medians and spread are shown  [3]
  --threads N        threads of the clients, each with its own descriptor table  [1, or more for many clients]
  --clients N        clients
  --seconds S        length of one measurement
  --payload BYTES    bytes of one message
  --streams N        streams over which the clients are spread
  --attackers N,N    how many clients attack at a time, each number in its turn  [1,100]
  --shards N,N       shards: how many shards, each number in its turn  [1,2,4,8,16,32,64]
  --case TEXT        only cases with this in their name
  --help             this text
";

/// Clients that one thread can hold. Each thread has its own descriptor table, which has 20,000 descriptors on the smallest
/// supported machine.
const CLIENTS_PER_THREAD: usize = 19_000;

impl Options {
    /// Reads the command line. On a mistake it prints what is wrong and ends the process.
    pub fn read(
        arguments: impl Iterator<Item = String>,
        scenarios: &[Scenario],
    ) -> (&Scenario, Self) {
        // Cargo adds `--bench`, which is no option of this tool.
        let words: Vec<String> = arguments.filter(|word| word != "--bench").collect();
        let parsed = Self::parse(&words).and_then(|options| match options {
            Some(options) => Ok(Some((options.scenario_of(scenarios)?, options))),
            None => Ok(None),
        });
        match parsed {
            Ok(Some(found)) => found,
            Ok(None) => {
                print!("{}", help(scenarios));
                exit(0);
            }
            Err(problem) => {
                eprintln!("{problem}\n\n{}", help(scenarios));
                exit(2);
            }
        }
    }

    fn parse(words: &[String]) -> Result<Option<Self>, String> {
        let mut options = Self {
            scenario: String::new(),
            peer: None,
            before: None,
            drivers: vec![Driver::IoUring],
            cores: 1,
            runs: 3,
            threads: 0,
            clients: None,
            seconds: None,
            payload_bytes: None,
            streams: None,
            attackers: Vec::new(),
            shards: Vec::new(),
            case: String::new(),
            shown: shown(words),
        };
        let mut words = words.iter();
        while let Some(word) = words.next() {
            if word == "--help" {
                return Ok(None);
            }
            let Some(name) = word.strip_prefix("--") else {
                options.scenario.clone_from(word);
                continue;
            };
            let (name, value) = match name.split_once('=') {
                Some((name, value)) => (name, value.to_owned()),
                None => (name, words.next().cloned().unwrap_or_default()),
            };
            options.set(name, &value)?;
        }
        Ok(Some(options))
    }

    fn scenario_of<'a>(&self, scenarios: &'a [Scenario]) -> Result<&'a Scenario, String> {
        let found = scenarios
            .iter()
            .find(|scenario| scenario.name == self.scenario);
        found.ok_or_else(|| format!("there is no scenario {:?}", self.scenario))
    }

    fn set(&mut self, name: &str, value: &str) -> Result<(), String> {
        let number = || {
            value
                .parse::<usize>()
                .map_err(|_| format!("--{name} takes a number, not {value:?}"))
        };
        match name {
            "peer" => self.peer = Some(value.into()),
            "before" => self.before = Some(value.into()),
            "driver" => {
                self.drivers = value
                    .split(',')
                    .map(Driver::parse)
                    .collect::<Result<_, _>>()?
            }
            "cores" => self.cores = number()?,
            "runs" => self.runs = number()?,
            "threads" => self.threads = number()?,
            "clients" => self.clients = Some(number()?),
            "seconds" => self.seconds = Some(number()? as u64),
            "payload" => self.payload_bytes = Some(number()?),
            "streams" => self.streams = Some(number()?),
            "attackers" => self.attackers = numbers(name, value)?,
            "shards" => self.shards = numbers(name, value)?,
            "case" => value.clone_into(&mut self.case),
            _ => return Err(format!("there is no option --{name}")),
        }
        Ok(())
    }

    /// The servers to measure, in turns.
    pub fn targets(&self) -> Vec<Target> {
        let mut targets: Vec<Target> = self
            .drivers
            .iter()
            .map(|driver| Target::ringcable(*driver, self.cores))
            .collect();
        targets.extend(self.peer.iter().map(|path| Target::peer(path, self.cores)));
        targets
    }

    /// The CPUs that the server leaves to the clients; empty: any CPU.
    pub fn client_cpus(&self) -> Vec<usize> {
        (self.cores..machine_cpus()).collect()
    }

    /// Whether this case is selected.
    pub fn wants(&self, case: &str) -> bool {
        case.contains(&self.case)
    }

    /// Threads needed for this many clients.
    pub fn threads_for(&self, clients: usize) -> usize {
        self.threads
            .max(clients.div_ceil(CLIENTS_PER_THREAD))
            .max(1)
    }
}

/// Numbers with commas between them.
fn numbers(name: &str, value: &str) -> Result<Vec<usize>, String> {
    let each = value.split(',').map(|number| {
        number
            .parse()
            .map_err(|_| format!("--{name} takes numbers with commas, not {value:?}"))
    });
    each.collect()
}

/// Options whose value is the path of a binary.
const BINARIES: [&str; 2] = ["--peer", "--before"];

/// The command line as typed, but without the folders of the other binaries, which exist only on this machine.
fn shown(words: &[String]) -> String {
    let file_name = |path: &str| path.rsplit('/').next().unwrap_or_default().to_owned();
    let mut previous = "";
    let mut shown = Vec::new();
    for word in words {
        shown.push(match word.split_once('=') {
            Some((name, path)) if BINARIES.contains(&name) => format!("{name}={}", file_name(path)),
            None if BINARIES.contains(&previous) => file_name(word),
            _ => word.clone(),
        });
        previous = word;
    }
    shown.join(" ")
}

fn help(scenarios: &[Scenario]) -> String {
    let mut text = "cargo bench --bench load -- SCENARIO [options]\n\nScenarios\n".to_owned();
    for scenario in scenarios.iter().filter(|scenario| !scenario.hidden) {
        let _ = writeln!(text, "  {:<18} {}", scenario.name, scenario.about);
    }
    let _ = write!(text, "\n{HELP}");
    text
}
