//! How a task lets all other work of its shard run.
//!
//! If a task only wakes itself, it is run again before the driver is asked for anything, because monoio parks only when no
//! task is ready. Completions and timers, and with them accepts, requests and pings, would wait until the task has nothing
//! more to do, and a client can delay that without end. So a yield waits for one pass of the driver. That pass does not
//! sleep, because it asks for a pipe that is readable. All tasks that yield at the same time share
//! the pass.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::fd::OwnedFd;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Poll, Waker};

use monoio::net::TcpStream;

use super::Driver;

/// The yields of one shard.
#[derive(Default)]
pub struct Yields {
    /// Number of driver passes that have ended.
    passes: Cell<u64>,
    /// The tasks that wait for the end of the next pass.
    waiting: RefCell<Vec<Waker>>,
    /// The waker of the task that causes the passes; taken to start a pass.
    task: RefCell<Option<Waker>>,
}

impl Yields {
    /// Starts the task that causes the passes. Call inside the shard's runtime, with its driver.
    ///
    /// # Errors
    /// Those of pipe(2) and of the driver's registration.
    pub fn start(driver: Driver) -> io::Result<Rc<Yields>> {
        let yields = Rc::new(Yields::default());
        let pipe = Pipe::new(driver)?;
        monoio::spawn(run(Rc::clone(&yields), pipe));
        Ok(yields)
    }

    /// Returns after the other ready tasks have run and the driver has looked once, without sleeping, for events of the
    /// kernel and for timers.
    pub async fn yield_now(&self) {
        let before = self.passes.get();
        let mut asked = false;
        poll_fn(|context| {
            if self.passes.get() != before {
                return Poll::Ready(());
            }
            if !asked {
                asked = true;
                self.waiting.borrow_mut().push(context.waker().clone());
                if let Some(task) = self.task.borrow_mut().take() {
                    task.wake();
                }
            }
            Poll::Pending
        })
        .await;
    }

    async fn wanted(&self) {
        poll_fn(|context| {
            if !self.waiting.borrow().is_empty() {
                return Poll::Ready(());
            }
            *self.task.borrow_mut() = Some(context.waker().clone());
            Poll::Pending
        })
        .await;
    }

    fn pass_ended(&self) {
        self.passes.set(self.passes.get() + 1);
        for waker in self.waiting.borrow_mut().drain(..) {
            waker.wake();
        }
    }
}

async fn run(yields: Rc<Yields>, mut pipe: Pipe) {
    loop {
        yields.wanted().await;
        // A pipe of our own does not fail. If it did, a yield would only put the task at the end of the queue.
        let _ = pipe.pass().await;
        yields.pass_ended();
    }
}

/// A descriptor that becomes ready when we write to it.
struct Pipe {
    reader: PipeReader,
    writer: PipeWriter,
    /// The reading side again, as a socket type: monoio has no type for a bare descriptor, and this one is only asked for
    /// readiness.
    readiness: TcpStream,
    driver: Driver,
}

impl Pipe {
    fn new(driver: Driver) -> io::Result<Self> {
        let (reader, mut writer) = io::pipe()?;
        if driver == Driver::IoUring {
            writer.write_all(&[0])?;
        }
        let watched = OwnedFd::from(reader.try_clone()?);
        Ok(Self {
            reader,
            writer,
            readiness: TcpStream::from_std(std::net::TcpStream::from(watched))?,
            driver,
        })
    }

    /// One pass of the driver. With io_uring the ring is asked in each pass whether the pipe is readable, and it always is:
    /// its one byte stays there. With epoll only a change is reported.
    async fn pass(&mut self) -> io::Result<()> {
        match self.driver {
            Driver::IoUring => self.readiness.readable(false).await,
            Driver::Epoll => self.pass_with_edge().await,
        }
    }

    /// Waits for a byte that it writes itself. It writes after the wait has begun: on epoll, monoio would otherwise answer
    /// from the readiness that it remembers, without a pass of the driver.
    async fn pass_with_edge(&mut self) -> io::Result<()> {
        let mut readable = pin!(self.readiness.readable(false));
        let mut written = None;
        poll_fn(|context| {
            let polled = readable.as_mut().poll(context);
            if polled.is_pending() && written.is_none() {
                written = Some(self.writer.write(&[0]));
            }
            polled
        })
        .await?;
        if let Some(written) = written {
            written?;
            self.reader.read_exact(&mut [0])?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use monoio::{IoUringDriver, LegacyDriver, RuntimeBuilder};

    use super::*;

    fn on_both_drivers<F: Future<Output = ()>>(work: impl Fn(Driver) -> F) {
        RuntimeBuilder::<IoUringDriver>::new()
            .enable_timer()
            .build()
            .expect("io_uring on the test machine")
            .block_on(work(Driver::IoUring));
        RuntimeBuilder::<LegacyDriver>::new()
            .enable_timer()
            .build()
            .expect("epoll")
            .block_on(work(Driver::Epoll));
    }

    #[test]
    fn timers_go_off_beside_a_task_that_always_goes_on() {
        on_both_drivers(|driver| async move {
            let yields = Yields::start(driver).expect("a pipe");
            let slept = Rc::new(Cell::new(false));
            let done = Rc::clone(&slept);
            monoio::spawn(async move {
                monoio::time::sleep(Duration::from_millis(5)).await;
                done.set(true);
            });
            let deadline = Instant::now() + Duration::from_secs(5);
            while !slept.get() {
                assert!(Instant::now() < deadline, "the timer starves");
                yields.yield_now().await;
            }
        });
    }

    #[test]
    fn readiness_arrives_beside_tasks_that_always_go_on() {
        on_both_drivers(|driver| async move {
            let yields = Yields::start(driver).expect("a pipe");
            for _ in 0..3 {
                let yields = Rc::clone(&yields);
                monoio::spawn(async move {
                    loop {
                        yields.yield_now().await;
                    }
                });
            }
            let (mut ours, mut theirs) = io::pipe().expect("a pipe");
            let watched = OwnedFd::from(ours.try_clone().expect("dup"));
            let stream =
                TcpStream::from_std(std::net::TcpStream::from(watched)).expect("registered");
            for round in 0..3 {
                theirs.write_all(b"x").expect("write");
                stream.readable(false).await.expect("ready");
                ours.read_exact(&mut [0]).expect("a byte");
                assert!(round < 3);
            }
        });
    }

    #[test]
    fn a_yield_does_not_sleep() {
        on_both_drivers(|driver| async move {
            let yields = Yields::start(driver).expect("a pipe");
            let started = Instant::now();
            for _ in 0..1000 {
                yields.yield_now().await;
            }
            // A sleep takes at least one millisecond.
            assert!(started.elapsed() < Duration::from_millis(900));
        });
    }
}
