//! When a session needs a ping, and by when its client must respond. Times are ticks of the shard's wheel.

/// Ticks since the shard started, for 6.8 years; 0 is never a deadline.
pub type Tick = u32;

/// "No deadline".
const NEVER: Tick = 0;

/// What is due now.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct DueNow {
    pub ping: bool,
    /// The client has been silent for too long.
    pub no_pong: bool,
}

/// Ping and pong times of one session. Source: contract/websocket.md §10.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadlines {
    ping_due: Tick,
    /// Ticks between pings; 0 = no pings.
    ping_ticks: Tick,
    pong_due: Tick,
    /// Ticks that a client may be silent after a ping; 0 = this session does not require pongs. It shares the field with
    /// [`WAITING_FOR_APP`], because a field of its own would make every session four bytes larger.
    pong_ticks: Tick,
}

/// Set while a call to the app is under way. Nothing is read from the client then, so its silence proves nothing. Intervals
/// in ticks stay far below this bit.
const WAITING_FOR_APP: Tick = 1 << 31;

impl Deadlines {
    /// Deadlines of a session that starts at `now` and gets its first ping `first_ping_ticks` later.
    pub fn new(now: Tick, first_ping_ticks: Tick, ping_ticks: Tick, pong_ticks: Tick) -> Self {
        let pings = ping_ticks > 0;
        let ping_due = if pings {
            now + first_ping_ticks.max(1)
        } else {
            NEVER
        };
        let pong_ticks = if pings { pong_ticks } else { 0 };
        Self {
            ping_due,
            ping_ticks,
            pong_due: if pong_ticks > 0 {
                ping_due + pong_ticks
            } else {
                NEVER
            },
            pong_ticks: pong_ticks & !WAITING_FOR_APP,
        }
    }

    fn pong_ticks(&self) -> Tick {
        self.pong_ticks & !WAITING_FOR_APP
    }

    /// The earliest deadline.
    pub fn next(&self) -> Option<Tick> {
        [self.ping_due, self.pong_due]
            .into_iter()
            .filter(|&tick| tick != NEVER)
            .min()
    }

    /// What is due at `now`. A due ping counts as sent, and the next one is planned.
    pub fn take_due(&mut self, now: Tick) -> DueNow {
        let mut no_pong = self.pong_due != NEVER && self.pong_due <= now;
        if no_pong && self.pong_ticks & WAITING_FOR_APP != 0 {
            no_pong = false;
            self.pong_due = now.saturating_add(self.pong_ticks());
        }
        let ping = self.ping_due != NEVER && self.ping_due <= now;
        if ping {
            // Counted from the plan, not from now, so that a late tick does not shift the later pings. After a stall one
            // ping is enough.
            self.ping_due = (self.ping_due + self.ping_ticks).max(now + 1);
            if self.pong_due == NEVER && self.pong_ticks() > 0 {
                self.pong_due = now + self.pong_ticks();
            }
        }
        DueNow { ping, no_pong }
    }

    /// A message that could be decoded arrived, so the client is alive.
    pub fn sign_of_life(&mut self) {
        self.pong_due = NEVER;
    }

    /// A WebSocket pong arrived: it adds the timeout to a running deadline.
    pub fn native_pong(&mut self) {
        self.extend_pong();
    }

    /// A command, or the Connect call, waits for the app from now on. No pong deadline passes before it has ended.
    pub fn command_started(&mut self) {
        self.pong_ticks |= WAITING_FOR_APP;
    }

    /// A command has ended. A pong deadline that a ping set meanwhile is extended, because nothing was read from the client.
    pub fn command_ended(&mut self) {
        self.pong_ticks &= !WAITING_FOR_APP;
        self.extend_pong();
    }

    fn extend_pong(&mut self) {
        if self.pong_due != NEVER {
            // A client may send any number of pongs, so the sum must not overflow.
            self.pong_due = self.pong_due.saturating_add(self.pong_ticks());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pings_keep_their_rhythm() {
        let mut deadlines = Deadlines::new(100, 30, 60, 0);
        assert_eq!(deadlines.next(), Some(130));
        assert_eq!(deadlines.take_due(129), DueNow::default());
        assert!(deadlines.take_due(133).ping);
        assert_eq!(deadlines.next(), Some(190));
        assert!(deadlines.take_due(1000).ping);
        assert_eq!(deadlines.next(), Some(1001));
    }

    #[test]
    fn without_pings_nothing_is_ever_due() {
        let mut deadlines = Deadlines::new(100, 30, 0, 10);
        assert_eq!(deadlines.next(), None);
        assert_eq!(deadlines.take_due(u32::MAX), DueNow::default());
    }

    #[test]
    fn a_silent_client_is_due_after_first_ping_and_timeout() {
        let mut deadlines = Deadlines::new(0, 30, 60, 40);
        assert!(!deadlines.take_due(69).no_pong);
        assert!(deadlines.take_due(70).no_pong);
    }

    #[test]
    fn any_message_clears_the_deadline_until_the_next_ping() {
        let mut deadlines = Deadlines::new(0, 30, 60, 40);
        deadlines.sign_of_life();
        assert_eq!(deadlines.next(), Some(30));
        deadlines.take_due(30);
        assert_eq!(deadlines.next(), Some(70));
        deadlines.native_pong();
        assert_eq!(deadlines.next(), Some(90));
        assert!(!deadlines.take_due(90).no_pong, "the ping is due first");
        assert!(
            deadlines.take_due(110).no_pong,
            "several pings do not move a running deadline"
        );
    }

    #[test]
    fn a_long_command_pushes_the_deadline_back() {
        let mut deadlines = Deadlines::new(0, 30, 60, 40);
        deadlines.sign_of_life();
        deadlines.take_due(30);
        deadlines.command_ended();
        assert!(!deadlines.take_due(89).no_pong);
        assert!(deadlines.take_due(110).no_pong);
    }

    #[test]
    fn no_deadline_passes_while_the_app_is_asked() {
        let mut deadlines = Deadlines::new(0, 30, 60, 40);
        deadlines.sign_of_life();
        deadlines.command_started();
        for tick in (30..1000).step_by(30) {
            assert!(!deadlines.take_due(tick).no_pong, "tick {tick}");
        }
        deadlines.command_ended();
        assert!(
            !deadlines.take_due(1039).no_pong,
            "the client has a whole timeout from here on"
        );
        assert!(deadlines.take_due(1080).no_pong);
    }

    #[test]
    fn any_number_of_pongs_does_not_overflow() {
        let mut deadlines = Deadlines::new(0, 30, 60, Tick::MAX / 4);
        for _ in 0..10 {
            deadlines.native_pong();
        }
        assert!(!deadlines.take_due(Tick::MAX / 2).no_pong);
    }
}
