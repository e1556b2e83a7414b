//! How a task lets everything else of its shard run.
//!
//! A task that only wakes itself is run again before the driver is asked for anything: monoio parks when no task is ready.
//! Completions, timers and with them accepts, requests and pings would wait until the task has nothing more to do, which a
//! client can put off for ever. So a yield waits for a pass of the driver: one that does not sleep, because a pipe that the
//! shard has just written to is ready at once. All tasks that yield share the pass.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::fd::OwnedFd;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Poll, Waker};

use monoio::net::TcpStream;

/// The yields of one shard.
#[derive(Default)]
pub struct Yields {
    /// Passes of the driver that have ended.
    passes: Cell<u64>,
    /// Who waits for the end of the next one.
    waiting: RefCell<Vec<Waker>>,
    /// Of the task that has the driver pass; taken when it has to begin.
    task: RefCell<Option<Waker>>,
}

impl Yields {
    /// Starts the task that has the driver pass. Call inside the shard's runtime.
    ///
    /// # Errors
    /// Those of pipe(2) and of the driver's registration.
    pub fn start() -> io::Result<Rc<Yields>> {
        let yields = Rc::new(Yields::default());
        let pipe = Pipe::new()?;
        monoio::spawn(run(Rc::clone(&yields), pipe));
        Ok(yields)
    }

    /// Returns after the other tasks that are ready had a turn and the driver has looked once, without sleeping, for what
    /// the kernel and the clock have to say.
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
        // A pipe of our own does not fail; if it did, a yield would be no more than a place at the end of the queue.
        let _ = pipe.pass().await;
        yields.pass_ended();
    }
}

/// A descriptor that is ready when we say so.
struct Pipe {
    reader: PipeReader,
    writer: PipeWriter,
    /// The reading side once more, dressed as a socket: monoio has no type for a bare descriptor, and only readiness is
    /// asked of it.
    readiness: TcpStream,
}

impl Pipe {
    fn new() -> io::Result<Self> {
        let (reader, writer) = io::pipe()?;
        let watched = OwnedFd::from(reader.try_clone()?);
        Ok(Self {
            reader,
            writer,
            readiness: TcpStream::from_std(std::net::TcpStream::from(watched))?,
        })
    }

    /// Waits for something that is there already. It is written after the wait has begun: epoll would take what it knows for
    /// an answer and return without having looked.
    async fn pass(&mut self) -> io::Result<()> {
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

    fn on_both_drivers<F: Future<Output = ()>>(work: impl Fn() -> F) {
        RuntimeBuilder::<IoUringDriver>::new()
            .enable_timer()
            .build()
            .expect("io_uring on the test machine")
            .block_on(work());
        RuntimeBuilder::<LegacyDriver>::new()
            .enable_timer()
            .build()
            .expect("epoll")
            .block_on(work());
    }

    #[test]
    fn timers_go_off_beside_a_task_that_always_goes_on() {
        on_both_drivers(|| async {
            let yields = Yields::start().expect("a pipe");
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
        on_both_drivers(|| async {
            let yields = Yields::start().expect("a pipe");
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
        on_both_drivers(|| async {
            let yields = Yields::start().expect("a pipe");
            let started = Instant::now();
            for _ in 0..1000 {
                yields.yield_now().await;
            }
            // A sleep is a millisecond at least.
            assert!(started.elapsed() < Duration::from_millis(900));
        });
    }
}
