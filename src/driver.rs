//! io_uring or epoll: one decision for all shards, made by creating a ring.

use std::io;
use std::thread;

use crate::config::DriverChoice;
use crate::net::Driver;
use crate::reactor;

/// The driver in use, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    pub driver: Driver,
    /// Shown in the start-up line.
    pub reason: String,
}

impl Choice {
    /// The choice after the start: `on_epoll` of `shards` shards run on epoll. The probe may succeed and shards may still
    /// fail, because the memory for rings is limited and all shards together need more of it than the probe.
    pub fn after_start(mut self, on_epoll: usize, shards: usize) -> Choice {
        if self.driver == Driver::IoUring && on_epoll > 0 {
            if on_epoll == shards {
                self.driver = Driver::Epoll;
            }
            self.reason = format!(
                "io_uring was refused to {on_epoll} of {shards} shards, which run on epoll"
            );
        }
        self
    }
}

/// `--driver=io_uring` on a host that refuses it.
#[derive(Debug, thiserror::Error)]
#[error("--driver=io_uring was asked for, but {0}; use --driver=auto or allow it")]
pub struct DriverRefused(String);

/// Tries io_uring unless the options name a driver, and uses epoll where the kernel refuses io_uring.
///
/// # Errors
/// `--driver=io_uring` was given and the kernel refuses it.
pub fn choose(choice: DriverChoice) -> Result<Choice, DriverRefused> {
    match choice {
        DriverChoice::Epoll => Ok(Choice {
            driver: Driver::Epoll,
            reason: "asked for by --driver=epoll".to_string(),
        }),
        DriverChoice::IoUring => match probe() {
            Ok(()) => Ok(Choice {
                driver: Driver::IoUring,
                reason: "asked for by --driver=io_uring".to_string(),
            }),
            Err(error) => Err(DriverRefused(explain(&error))),
        },
        DriverChoice::Auto => Ok(match probe() {
            Ok(()) => Choice {
                driver: Driver::IoUring,
                reason: "the kernel allows it".to_string(),
            },
            Err(error) => Choice {
                driver: Driver::Epoll,
                reason: explain(&error),
            },
        }),
    }
}

/// Checks whether the kernel lets this process create an io_uring.
///
/// # Errors
/// The reason for the refusal, as text for the log.
pub fn try_io_uring() -> Result<(), String> {
    probe().map_err(|error| explain(&error))
}

/// Runs on its own thread: when a ring is closed, the kernel leaves work for the thread that made the ring, and that work
/// interrupts the thread's next system call (EINTR).
fn probe() -> io::Result<()> {
    match thread::spawn(reactor::probe).join() {
        Ok(result) => result,
        Err(_) => Err(io::Error::other("the probe ended in a panic")),
    }
}

/// What an errno of io_uring_setup(2) means to an operator.
fn explain(error: &io::Error) -> String {
    let cause = match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => {
            "blocked by a seccomp profile (Docker's default does that) or by kernel.io_uring_disabled"
        }
        Some(libc::ENOSYS) => {
            "unknown to this kernel, or hidden by a seccomp profile (podman's default does that)"
        }
        Some(libc::ENOMEM) => "over the limit on locked memory; raise memlock",
        _ => "refused by the kernel",
    };
    format!("io_uring is {cause} ({error})")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_known_refusal_is_explained() {
        for (errno, word) in [
            (libc::EPERM, "seccomp"),
            (libc::ENOSYS, "podman"),
            (libc::ENOMEM, "memlock"),
        ] {
            let text = explain(&io::Error::from_raw_os_error(errno));
            assert!(text.contains(word), "{text}");
        }
    }

    #[test]
    fn the_driver_named_at_the_start_is_the_one_in_use() {
        let choice = || Choice {
            driver: Driver::IoUring,
            reason: "the kernel allows it".to_string(),
        };
        assert_eq!(choice().after_start(0, 2), choice());
        let mixed = choice().after_start(1, 2);
        assert_eq!(mixed.driver, Driver::IoUring);
        assert!(mixed.reason.contains("1 of 2 shards"), "{}", mixed.reason);
        assert_eq!(choice().after_start(2, 2).driver, Driver::Epoll);
    }

    #[test]
    fn epoll_by_name_needs_no_probe() {
        let choice = choose(DriverChoice::Epoll).expect("epoll is always there");
        assert_eq!(choice.driver, Driver::Epoll);
    }
}
