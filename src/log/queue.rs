//! Records on their way to stdout: a bounded queue and the thread that empties it. A caller only copies its line into the
//! queue, so a slow or stopped reader of the log delays no shard.
//!
//! When the queue is full, the newest records are dropped and counted until half of the queue is empty again. Then, at the
//! place of the gap, a record says how many are missing. Called by `log` alone.

use std::fs::File;
use std::io;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::os::stdio::write_whole;

/// Bytes of waiting records, including those that are being written.
pub const QUEUE_BYTES_MAX: usize = 1024 * 1024;

/// After a loss the queue takes records again when no more than this is left, so that a slow reader gets few large gaps and
/// not many small ones.
const RESUMED_AT_BYTES: usize = QUEUE_BYTES_MAX / 2;

/// Bytes of one write, in whole lines. A pipe takes this many bytes without splitting them (`PIPE_BUF`), so that the output
/// of other processes falls between two lines.
const WRITE_BYTES_MAX: usize = 4096;

/// After a write the writer waits this long to gather more records. Waking it is a system call and often takes the CPU away
/// from the thread that logs; with this wait one wake-up serves many records. A single record is written at once.
const GATHER_TIME: Duration = Duration::from_millis(1);

/// Capacity that an empty queue keeps.
const KEPT_BYTES: usize = 16 * 1024;

/// Lines for one output stream.
#[derive(Debug)]
pub struct Queue {
    state: Mutex<State>,
    filled: Condvar,
    emptied: Condvar,
}

#[derive(Debug)]
struct State {
    waiting: Vec<u8>,
    /// Bytes that the writer has taken and not yet written.
    being_written: usize,
    /// The writer sleeps until a line comes, and must be woken.
    writer_sleeps: bool,
    /// The process ends: the writer no longer waits to gather records.
    hurried: bool,
    /// The limit was reached; nothing is taken until enough has been written.
    full: bool,
    /// Records dropped since `full` became true.
    missing: u64,
    /// Records lost since the start, at the limit and by failed writes.
    dropped_total: u64,
}

impl State {
    fn bytes(&self) -> usize {
        self.waiting.len() + self.being_written
    }

    fn has_room(&mut self, bytes: usize) -> bool {
        // If memory for the record cannot be had, the record is dropped: a log record must not end the process.
        !self.full
            && self.bytes() + bytes <= QUEUE_BYTES_MAX
            && self.waiting.try_reserve(bytes).is_ok()
    }
}

/// Why records are missing.
#[derive(Debug)]
pub enum Loss {
    /// Records came faster than stdout took them.
    Full,
    /// The write failed.
    Failed(io::Error),
}

impl Queue {
    pub const fn new() -> Self {
        Self {
            state: Mutex::new(State {
                waiting: Vec::new(),
                being_written: 0,
                writer_sleeps: false,
                hurried: false,
                full: false,
                missing: 0,
                dropped_total: 0,
            }),
            filled: Condvar::new(),
            emptied: Condvar::new(),
        }
    }

    /// Takes a line with its newline, or drops it when the queue is full. Never waits for the stream.
    pub fn push(&self, line: &[u8]) {
        let mut state = self.lock();
        if state.has_room(line.len()) {
            state.waiting.extend_from_slice(line);
        } else {
            state.full = true;
            state.missing += 1;
            state.dropped_total += 1;
        }
        // Only a sleeping writer is woken: a wake-up is a system call, and a busy writer looks at the queue again anyway.
        if std::mem::take(&mut state.writer_sleeps) {
            drop(state);
            self.filled.notify_one();
        }
    }

    /// Records lost since the start.
    pub fn dropped_total(&self) -> u64 {
        self.lock().dropped_total
    }

    /// Waits until everything is written, but at most `limit`; returns false when the time is up. Called when the process
    /// ends: from now on the writer no longer gathers records.
    pub fn flush(&self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        let mut state = self.lock();
        state.hurried = true;
        self.filled.notify_one();
        while state.bytes() > 0 || state.full {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            let (guard, _) = self
                .emptied
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner);
            state = guard;
        }
        true
    }

    /// Writes all lines to `stream`, for ever. `loss_line` makes the record about missing records.
    pub fn write_all(&self, stream: File, loss_line: impl Fn(u64, &Loss) -> Vec<u8>) -> ! {
        let mut writer = Writer {
            queue: self,
            stream,
            loss_line,
            failed: None,
            torn: false,
        };
        let mut batch = Vec::new();
        loop {
            self.take(&mut batch);
            writer.write_lines(&batch);
            batch.clear();
            batch.shrink_to(KEPT_BYTES);
            writer.tell_of_gap();
        }
    }

    /// Waits for lines or for a loss, then moves all waiting lines into `batch`, which must be empty.
    fn take(&self, batch: &mut Vec<u8>) {
        let mut state = self.lock();
        if !state.hurried {
            // Once and not in a loop: a wake-up without a cause only makes this pause shorter.
            let (guard, _) = self
                .filled
                .wait_timeout(state, GATHER_TIME)
                .unwrap_or_else(PoisonError::into_inner);
            state = guard;
        }
        while state.waiting.is_empty() && !state.full {
            state.writer_sleeps = true;
            state = self
                .filled
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        state.writer_sleeps = false;
        std::mem::swap(&mut state.waiting, batch);
        state.being_written = batch.len();
    }

    fn written(&self, bytes: usize, lost: u64) {
        let mut state = self.lock();
        state.being_written -= bytes;
        state.dropped_total += lost;
        if state.bytes() == 0 && !state.full {
            drop(state);
            self.emptied.notify_all();
        }
    }

    /// A panic cannot leave these plain values half changed, so a poisoned lock is still usable.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The writing side of a queue.
struct Writer<'a, L> {
    queue: &'a Queue,
    stream: File,
    loss_line: L,
    /// Records lost by failed writes that no record has mentioned yet, and the last cause.
    failed: Option<(u64, Loss)>,
    /// The stream ends in the middle of a line.
    torn: bool,
}

impl<L: Fn(u64, &Loss) -> Vec<u8>> Writer<'_, L> {
    fn write_lines(&mut self, mut lines: &[u8]) {
        while !lines.is_empty() {
            let (chunk, rest) = lines.split_at(whole_lines(lines, WRITE_BYTES_MAX));
            self.tell_of_failures();
            let lost = self.write(chunk);
            self.queue.written(chunk.len(), lost);
            lines = rest;
        }
    }

    /// When the stream works again, the record about the lost ones comes first.
    fn tell_of_failures(&mut self) {
        let Some((lost, loss)) = self.failed.take() else {
            return;
        };
        let mut line = (self.loss_line)(lost, &loss);
        if self.torn {
            line.insert(0, b'\n');
        }
        match write_whole(&self.stream, &line) {
            Ok(()) => self.torn = false,
            Err(torn) => {
                self.torn |= torn.written > 0;
                self.failed = Some((lost, Loss::Failed(torn.cause)));
            }
        }
    }

    /// Returns how many records were lost.
    fn write(&mut self, lines: &[u8]) -> u64 {
        let Err(torn) = write_whole(&self.stream, lines) else {
            return 0;
        };
        let (written, rest) = lines.split_at(torn.written);
        if let Some(last) = written.last() {
            self.torn = *last != b'\n';
        }
        let lost = rest.iter().filter(|byte| **byte == b'\n').count() as u64;
        let before = self.failed.take().map_or(0, |(lost, _)| lost);
        self.failed = Some((before + lost, Loss::Failed(torn.cause)));
        lost
    }

    /// Appends the record about a gap. The end of the waiting lines is its right place, because nothing was taken since the
    /// loss.
    fn tell_of_gap(&self) {
        let mut state = self.queue.lock();
        if state.full && state.bytes() <= RESUMED_AT_BYTES {
            state.full = false;
            let missing = std::mem::take(&mut state.missing);
            let line = (self.loss_line)(missing, &Loss::Full);
            state.waiting.extend_from_slice(&line);
        }
    }
}

/// The length of the whole lines that fit into `bytes_max`, at least one line.
fn whole_lines(lines: &[u8], bytes_max: usize) -> usize {
    let fitting = &lines[..lines.len().min(bytes_max)];
    let end = memchr::memrchr(b'\n', fitting).or_else(|| memchr::memchr(b'\n', lines));
    end.map_or(lines.len(), |at| at + 1)
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, PipeReader, Read, pipe};
    use std::os::fd::OwnedFd;
    use std::thread;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(20);

    fn start(stream: File) -> &'static Queue {
        let queue: &'static Queue = Box::leak(Box::new(Queue::new()));
        thread::spawn(move || {
            queue.write_all(stream, |count, loss| match loss {
                Loss::Full => format!("{count} missing\n").into_bytes(),
                Loss::Failed(_) => format!("{count} failed\n").into_bytes(),
            })
        });
        queue
    }

    fn into_a_pipe() -> (&'static Queue, PipeReader) {
        let (reader, writer) = pipe().expect("a pipe");
        (start(File::from(OwnedFd::from(writer))), reader)
    }

    #[test]
    fn lines_come_out_in_order() {
        let (queue, reader) = into_a_pipe();
        for number in 0..10_000 {
            queue.push(format!("{number}\n").as_bytes());
        }
        let lines = BufReader::new(reader)
            .lines()
            .map(|line| line.expect("UTF-8"));
        for (number, line) in lines.take(10_000).enumerate() {
            assert_eq!(line, number.to_string());
        }
        assert!(queue.flush(PATIENCE));
        assert_eq!(queue.dropped_total(), 0);
    }

    #[test]
    fn a_reader_that_stands_still_loses_the_newest_and_is_told_how_many() {
        let (queue, reader) = into_a_pipe();
        let line = format!("{}\n", "x".repeat(999));
        for _ in 0..3_000 {
            queue.push(line.as_bytes());
        }
        let held = queue.lock().bytes();
        assert!(
            held <= QUEUE_BYTES_MAX && held > QUEUE_BYTES_MAX - line.len(),
            "{held}"
        );
        assert!(!queue.flush(Duration::from_millis(10)), "nobody has read");
        let dropped = queue.dropped_total();
        let mut lines = BufReader::new(reader)
            .lines()
            .map(|line| line.expect("UTF-8"));
        let kept = lines
            .by_ref()
            .take_while(|line| line.starts_with('x'))
            .count() as u64;
        assert_eq!(kept + dropped, 3_000);
        queue.push(b"again\n");
        assert_eq!(lines.next().as_deref(), Some("again"));
        assert!(queue.flush(PATIENCE));
    }

    #[test]
    fn the_line_about_a_gap_stands_where_the_gap_is() {
        let (queue, reader) = into_a_pipe();
        let line = format!("{}\n", "x".repeat(999));
        for _ in 0..3_000 {
            queue.push(line.as_bytes());
        }
        let dropped = queue.dropped_total();
        let mut lines = BufReader::new(reader)
            .lines()
            .map(|line| line.expect("UTF-8"));
        let first = lines.by_ref().find(|line| !line.starts_with('x'));
        assert_eq!(first, Some(format!("{dropped} missing")));
    }

    #[test]
    fn one_record_larger_than_the_queue_is_dropped_alone() {
        let (queue, reader) = into_a_pipe();
        queue.push(&vec![b'x'; QUEUE_BYTES_MAX + 1]);
        assert_eq!(queue.dropped_total(), 1);
        assert!(queue.flush(PATIENCE));
        queue.push(b"after it\n");
        let lines = BufReader::new(reader)
            .lines()
            .map(|line| line.expect("UTF-8"));
        assert_eq!(lines.take(2).collect::<Vec<_>>(), ["1 missing", "after it"]);
    }

    #[test]
    fn what_cannot_be_written_is_counted_and_stops_nobody() {
        let full = File::options()
            .write(true)
            .open("/dev/full")
            .expect("a device");
        let queue = start(full);
        for _ in 0..50_000 {
            queue.push(b"a line\n");
            if queue.lock().bytes() > QUEUE_BYTES_MAX / 2 {
                assert!(queue.flush(PATIENCE));
            }
        }
        assert!(queue.flush(PATIENCE));
        assert_eq!(queue.dropped_total(), 50_000);
    }

    #[test]
    fn a_stream_that_recovers_is_told_what_it_missed() {
        let (mut reader, pipe_writer) = pipe().expect("a pipe");
        let mut writer = Writer {
            queue: &Queue::new(),
            stream: File::options()
                .write(true)
                .open("/dev/full")
                .expect("a device"),
            loss_line: |count: u64, _: &Loss| format!("{count} failed\n").into_bytes(),
            failed: None,
            torn: false,
        };
        writer.tell_of_failures();
        assert_eq!(writer.write(b"one\ntwo\n"), 2);
        writer.tell_of_failures();
        assert_eq!(writer.write(b"three\n"), 1);
        // The same state as after a write of which the kernel took a part.
        writer.torn = true;
        writer.stream = File::from(OwnedFd::from(pipe_writer));
        writer.tell_of_failures();
        assert_eq!(writer.write(b"four\n"), 0);
        drop(writer);
        let mut text = String::new();
        reader.read_to_string(&mut text).expect("UTF-8");
        assert_eq!(text, "\n3 failed\nfour\n");
    }

    #[test]
    fn writes_end_with_a_line() {
        let check = |lines: &str, expected: usize| {
            assert_eq!(whole_lines(lines.as_bytes(), 8), expected, "{lines:?}")
        };
        check("a\n", 2);
        check("abc\ndef\n", 8);
        check("abc\ndefg\n", 4);
        check("abcdefghijk\nb\n", 12);
        check("abcdefgh\n", 9);
        check("no end", 6);
    }
}
