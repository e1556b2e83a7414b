//! Writes the metrics of every interval to the log and to StatsD. The control thread calls it, because that thread has the
//! clock.
//!
//! Nothing here may stop or delay the server. If a name cannot be resolved or a socket fails, the packets of that interval
//! are lost and counted, and the log says so at most once in a while. StatsD has its own thread, because resolving a name
//! blocks.
//! Source: `contract/operations.md` §15 and §16.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs, UdpSocket};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::thread;
use std::time::{Duration, Instant};

use crate::config::MetricsConfig;
use crate::log::{self, Sparse, in_words};
use crate::metrics::Metrics;
use crate::metrics::rotation::{self, Rotation, Selection};
use crate::metrics::statsd::LineFormat;

/// After this time the target's name is resolved again, because its address may have changed.
const TARGET_KEPT_FOR: Duration = Duration::from_secs(60);
/// Minimum time between two log lines about failed packets.
const ERROR_LINE_INTERVAL: Duration = Duration::from_secs(60);
/// Flushes that may wait for the sending thread.
const FLUSHES_WAITING_MAX: usize = 1;

/// All targets that get metrics once per interval.
pub struct Reporting {
    interval: Duration,
    rotation: Rotation,
    log: Option<Selection>,
    statsd: Option<Statsd>,
}

/// The StatsD side that makes packets, on the control thread.
struct Statsd {
    format: LineFormat,
    sender: SyncSender<Flush>,
    /// Flushes dropped since the last accepted one, because the sending thread was busy.
    missed: u64,
}

/// The packets of one interval.
struct Flush {
    packets: Vec<String>,
    missed_before: u64,
}

impl Reporting {
    /// `None` when neither the metrics log nor StatsD is on.
    ///
    /// # Errors
    /// No thread could be started.
    pub fn start(config: &MetricsConfig, metrics: &Arc<Metrics>) -> io::Result<Option<Self>> {
        if !config.log && config.statsd.is_none() {
            return Ok(None);
        }
        let unknown = rotation::unknown_names(metrics, &config.log_filter);
        if config.log && !unknown.is_empty() {
            tracing::warn!(
                context = "metrics",
                names = unknown.join(","),
                "metrics_log_filter has names that no metric has; names are those of the metrics page without anycable_go_"
            );
        }
        let statsd = match &config.statsd {
            Some(statsd) => Some(Statsd {
                format: LineFormat::new(
                    &statsd.prefix,
                    &config.tags,
                    statsd.tag_style,
                    statsd.packet_bytes_max,
                ),
                sender: start_sender(statsd.target.clone(), Arc::clone(metrics))?,
                missed: 0,
            }),
            None => None,
        };
        Ok(Some(Self {
            interval: config.rotate_interval,
            rotation: Rotation::default(),
            log: config.log.then(|| Selection::new(&config.log_filter)),
            statsd,
        }))
    }

    /// Writes the metrics of the interval that ends now.
    pub fn report(&mut self, metrics: &Metrics) {
        tracing::debug!(context = "metrics", interval = %in_words(self.interval), "rotate metrics");
        let readings = self.rotation.rotate(metrics);
        if let Some(selection) = &self.log {
            let shown = readings.iter().filter(|reading| selection.shows(reading));
            log::numbers(shown.map(|reading| (&*reading.name, reading.value)));
        }
        if let Some(statsd) = &mut self.statsd {
            statsd.flush(statsd.format.packets(&readings));
        }
    }
}

impl Statsd {
    /// Never waits: while the sending thread resolves a name, new packets are dropped. A datagram may always be lost.
    fn flush(&mut self, packets: Vec<String>) {
        let flush = Flush {
            packets,
            missed_before: self.missed,
        };
        match self.sender.try_send(flush) {
            Ok(()) => self.missed = 0,
            Err(_) => self.missed += 1,
        }
    }
}

fn start_sender(target: String, metrics: Arc<Metrics>) -> io::Result<SyncSender<Flush>> {
    let (sender, flushes) = mpsc::sync_channel(FLUSHES_WAITING_MAX);
    let mut sending = Sending {
        target,
        socket: None,
        metrics,
        errors: Sparse::default(),
    };
    thread::Builder::new()
        .name("statsd".to_owned())
        .spawn(move || sending.run(&flushes))?;
    Ok(sender)
}

/// The StatsD side that owns the socket, on its own thread.
struct Sending {
    target: String,
    /// The socket and the time until which it is used. It is connected, so that the kernel reports a missing target.
    socket: Option<(UdpSocket, Instant)>,
    metrics: Arc<Metrics>,
    errors: Sparse,
}

impl Sending {
    fn run(&mut self, flushes: &Receiver<Flush>) {
        while let Ok(flush) = flushes.recv() {
            self.metrics.statsd_errors_total.add(flush.missed_before);
            for packet in &flush.packets {
                match self.send(packet.as_bytes(), Instant::now()) {
                    Ok(()) => self.metrics.statsd_packets_total.add(1),
                    Err(error) => self.note_error(&error, Instant::now()),
                }
            }
        }
    }

    fn send(&mut self, packet: &[u8], now: Instant) -> io::Result<()> {
        let fresh = self.socket.take().filter(|(_, until)| now < *until);
        let (socket, until) = match fresh {
            Some(fresh) => fresh,
            None => (connect(&self.target)?, now + TARGET_KEPT_FOR),
        };
        socket.send(packet)?;
        // The socket is put back only after success: after an error the next packet opens a new one.
        self.socket = Some((socket, until));
        Ok(())
    }

    fn note_error(&mut self, error: &io::Error, now: Instant) {
        self.metrics.statsd_errors_total.add(1);
        if let Some(admitted) = self.errors.admit_every(ERROR_LINE_INTERVAL, now) {
            tracing::warn!(
                service = "statsd",
                host = self.target,
                %error,
                left_out = admitted.left_out(),
                "cannot send metrics, the packet is lost"
            );
        }
    }
}

/// A UDP socket connected to the first address of `target` that works.
fn connect(target: &str) -> io::Result<UdpSocket> {
    let mut failure = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in target.to_socket_addrs()? {
        let any: SocketAddr = if address.is_ipv4() {
            ([0, 0, 0, 0], 0).into()
        } else {
            ([0u16; 8], 0).into()
        };
        let socket = UdpSocket::bind(any)?;
        match socket.connect(address) {
            Ok(()) => return Ok(socket),
            Err(error) => failure = error,
        }
    }
    Err(failure)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sending(target: &str) -> Sending {
        Sending {
            target: target.to_owned(),
            socket: None,
            metrics: Arc::new(Metrics::new(1)),
            errors: Sparse::default(),
        }
    }

    fn receive(socket: &UdpSocket) -> String {
        let timeout = Duration::from_secs(10);
        socket.set_read_timeout(Some(timeout)).expect("a timeout");
        let mut buffer = [0; 100];
        let bytes = socket.recv(&mut buffer).expect("a packet");
        String::from_utf8_lossy(&buffer[..bytes]).into_owned()
    }

    #[test]
    fn packets_are_lost_while_nobody_is_there_and_arrive_afterwards() {
        let receiver = UdpSocket::bind("127.0.0.1:0").expect("a port");
        let address = receiver.local_addr().expect("bound");
        drop(receiver);
        let mut sending = sending(&address.to_string());
        // UDP reports the loss of the first packet only when the second one is sent.
        let deadline = Instant::now() + Duration::from_secs(10);
        while sending.send(b"lost", Instant::now()).is_ok() {
            assert!(
                Instant::now() < deadline,
                "nobody listens, but no send fails"
            );
        }
        let receiver = UdpSocket::bind(address).expect("the port is still free");
        sending.send(b"found", Instant::now()).expect("sent");
        assert_eq!(receive(&receiver), "found");
    }

    #[test]
    fn a_name_is_looked_up_again_after_a_while() {
        let receiver = UdpSocket::bind("127.0.0.1:0").expect("a port");
        let mut sending = sending(&receiver.local_addr().expect("bound").to_string());
        let start = Instant::now();
        let local_port = |sending: &Sending| {
            let (socket, _) = sending.socket.as_ref().expect("kept");
            socket.local_addr().expect("bound").port()
        };
        sending.send(b"1", start).expect("sent");
        let first = local_port(&sending);
        let late = start + TARGET_KEPT_FOR - Duration::from_millis(1);
        sending.send(b"2", late).expect("sent");
        assert_eq!(local_port(&sending), first);
        sending.send(b"3", start + TARGET_KEPT_FOR).expect("sent");
        let (_, until) = sending.socket.as_ref().expect("kept");
        assert_eq!(*until, start + TARGET_KEPT_FOR * 2);
        for expected in ["1", "2", "3"] {
            assert_eq!(receive(&receiver), expected);
        }
    }

    #[test]
    fn errors_are_counted_and_logged_once_in_a_while() {
        let mut sending = sending("nobody.invalid:1");
        let error = io::Error::other("went wrong");
        let start = Instant::now();
        sending.note_error(&error, start);
        sending.note_error(&error, start + ERROR_LINE_INTERVAL / 2);
        assert_eq!(sending.errors.left_out(), 1);
        sending.note_error(&error, start + ERROR_LINE_INTERVAL);
        assert_eq!(sending.errors.left_out(), 0);
        assert_eq!(sending.metrics.statsd_errors_total.value(), 3);
    }

    #[test]
    fn flushes_that_the_thread_has_no_time_for_are_counted_with_the_next() {
        let (sender, flushes) = mpsc::sync_channel(FLUSHES_WAITING_MAX);
        let format = LineFormat::new("", &[], crate::config::StatsdTagStyle::Datadog, 100);
        let mut statsd = Statsd {
            format,
            sender,
            missed: 0,
        };
        for _ in 0..3 {
            statsd.flush(vec!["a:1|g".to_owned()]);
        }
        assert_eq!(flushes.recv().expect("the first").missed_before, 0);
        statsd.flush(Vec::new());
        assert_eq!(flushes.recv().expect("the fourth").missed_before, 2);
    }
}
