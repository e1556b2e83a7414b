//! The ways in which one client can make the server hold much memory.

use std::net::SocketAddrV4;

use flate2::Compression;
use serde_json::json;

use crate::fleet::client_frame;
use crate::websocket::{COMPRESSED, OPCODE_PING, OPCODE_TEXT, command, deflated, upgrade_request};

/// The stream of the greedy subscriptions.
pub const STREAM: &str = "much";
/// The default of `--max_message_size`, less the text around an identifier.
const IDENTIFIER_BYTES: usize = 65_000;
/// A little less than the largest head that any server of this project has accepted.
const HEAD_BYTES: usize = 1_000_000;
const COOKIE_BYTES: usize = 900_000;
const SMALL_COOKIE_BYTES: usize = 60_000;
const FLOOD_BYTES: usize = 3_000_000;
const EARLY_BYTES: usize = 940_000;
const MIB: usize = 1024 * 1024;
/// Size of fragments and bodies that are begun and never finished.
const UNFINISHED_BYTES: usize = 65_000;
const SUBSCRIPTIONS: usize = 4_090;

/// One way of making the server hold much.
pub struct Way {
    pub name: &'static str,
    pub clients: usize,
    /// True: clients are authenticated by the app. False: streams are public.
    pub app: bool,
    pub app_hangs: bool,
    pub flags: &'static [&'static str],
    /// What the client with this number does, with this server address.
    pub offer: fn(SocketAddrV4, usize) -> Offer,
    /// What happens afterwards.
    pub then: &'static [After],
}

/// Something that happens to clients for which the server holds much.
pub enum After {
    Publish { times: usize, bytes: usize },
    Leave,
}

impl After {
    pub fn name(&self) -> &'static str {
        match self {
            Self::Publish { .. } => "published to",
            Self::Leave => "closed",
        }
    }
}

/// What one client does.
pub struct Offer {
    pub entry: Entry,
    /// Sent as far as the server reads them.
    pub pieces: Vec<Vec<u8>>,
    pub reading: Reading,
}

/// How a client connects.
pub enum Entry {
    /// It connects to the client port, or to the broadcast port.
    Clients,
    Broadcasts,
    /// It has received its welcome.
    Session {
        compression: bool,
    },
    /// The same, and its connection ends with a RST.
    Reset {
        lines: String,
    },
}

/// How a client takes what the server sends.
pub enum Reading {
    Never,
    Slowly,
    /// It reads everything, and sends each piece only after the previous one was confirmed or rejected. So it is never slow.
    Answers,
}

const SESSION: Entry = Entry::Session { compression: false };
const COMPRESSING: Entry = Entry::Session { compression: true };
const WITH_COMPRESSION: &[&str] = &["--enable_ws_compression"];
/// So few that the calls for the clients that left must wait.
const FEW_DISCONNECTS: &[&str] = &["--disconnect_rate=10"];

/// A way without an app; the others are variations of it.
const fn way(name: &'static str, clients: usize, offer: fn(SocketAddrV4, usize) -> Offer) -> Way {
    Way {
        name,
        clients,
        app: false,
        app_hangs: false,
        flags: &[],
        offer,
        then: &[],
    }
}

pub const WAYS: &[Way] = &[
    way("idle session", 2_000, |_, _| never(SESSION, Vec::new())),
    way("silent connection", 1_000, |_, _| {
        never(Entry::Clients, Vec::new())
    }),
    way("half a head of 1 kB", 1_000, |address, _| {
        never(Entry::Clients, unended_head(address, 1_000))
    }),
    way("head of 1 MB, unfinished", 100, |address, _| {
        never(Entry::Clients, unended_head(address, HEAD_BYTES))
    }),
    way("head of 60 kB, unfinished", 200, |address, _| {
        never(Entry::Clients, unended_head(address, SMALL_COOKIE_BYTES))
    }),
    way("X-Request-ID of 1 MB", 50, |address, _| {
        never(Entry::Clients, long_request_id(address, HEAD_BYTES))
    }),
    way("X-Request-ID of 60 kB", 200, |address, _| {
        never(Entry::Clients, long_request_id(address, SMALL_COOKIE_BYTES))
    }),
    way("message of 65 kB, unfinished", 200, |_, _| {
        let mut frame = Vec::new();
        client_frame(OPCODE_TEXT, &[b'a'; UNFINISHED_BYTES], &mut frame);
        frame.truncate(frame.len() - 10);
        never(SESSION, frame)
    }),
    way("body of 65 kB, unfinished", 200, |_, _| {
        never(Entry::Broadcasts, unended_body("/_broadcast"))
    }),
    way("body that nobody reads, unfinished", 200, |_, _| {
        never(Entry::Clients, unended_body("/health"))
    }),
    Way {
        app: true,
        app_hangs: true,
        ..way("commands before the welcome", 50, |address, _| {
            let mut bytes = upgrade_request(address, "/cable", "").into_bytes();
            bytes.extend(subscribes(EARLY_BYTES / 1_000, 900).concat());
            never(Entry::Clients, bytes)
        })
    },
    Way {
        flags: WITH_COMPRESSION,
        ..way("bomb of 60 kB for 60 MiB", 5, |_, _| {
            never(
                COMPRESSING,
                compressed(&command("pong", &"a".repeat(60 * MIB))),
            )
        })
    },
    Way {
        flags: WITH_COMPRESSION,
        ..way("bomb of 16 kB for 16 MiB", 25, |_, _| {
            never(
                COMPRESSING,
                compressed(&command("pong", &"a".repeat(16 * MIB - 1_000))),
            )
        })
    },
    Way {
        then: &[After::Publish {
            times: 60,
            bytes: 8_000,
        }],
        ..way("never reads", 1_000, |_, _| {
            never(SESSION, subscribes(1, 0).concat())
        })
    },
    way("requests, answers never read", 20, |_, _| {
        let request = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n";
        never(Entry::Clients, request.repeat(FLOOD_BYTES / request.len()))
    }),
    way("pings, never read", 20, |_, _| never(SESSION, pings())),
    way("pings, read slowly", 10, |_, _| Offer {
        reading: Reading::Slowly,
        ..never(SESSION, pings())
    }),
    way("ping commands, never read", 20, |_, _| {
        let mut frame = Vec::new();
        client_frame(OPCODE_TEXT, br#"{"command":"ping"}"#, &mut frame);
        never(SESSION, frame.repeat(FLOOD_BYTES / frame.len()))
    }),
    Way {
        then: &[
            After::Publish {
                times: 1,
                bytes: 10,
            },
            After::Leave,
        ],
        ..way("4,090 subscriptions of 65 kB", 1, |_, _| {
            answered(SESSION, subscribes(SUBSCRIPTIONS, IDENTIFIER_BYTES))
        })
    },
    Way {
        then: &[After::Leave],
        ..way("4,090 subscriptions of 65 kB, closed at once", 1, |_, _| {
            answered(SESSION, subscribes(SUBSCRIPTIONS, IDENTIFIER_BYTES))
        })
    },
    Way {
        app: true,
        then: &[After::Leave],
        ..way("4,090 subscriptions of 65 kB, app", 1, |_, _| {
            answered(SESSION, app_subscribes(SUBSCRIPTIONS, IDENTIFIER_BYTES))
        })
    },
    Way {
        flags: WITH_COMPRESSION,
        then: &[After::Leave],
        ..way("100 compressed subscriptions of 16 MiB", 1, |_, _| {
            answered(COMPRESSING, compressed_subscribes(100, 16 * MIB - 2_000))
        })
    },
    Way {
        app: true,
        flags: FEW_DISCONNECTS,
        ..way("open with a cookie of 900 kB, RST", 300, |_, _| {
            reset_with_cookie(COOKIE_BYTES)
        })
    },
    Way {
        app: true,
        flags: FEW_DISCONNECTS,
        ..way("open with a cookie of 60 kB, RST", 2_000, |_, _| {
            reset_with_cookie(SMALL_COOKIE_BYTES)
        })
    },
];

fn never(entry: Entry, bytes: Vec<u8>) -> Offer {
    Offer {
        entry,
        pieces: vec![bytes],
        reading: Reading::Never,
    }
}

fn answered(entry: Entry, pieces: Vec<Vec<u8>>) -> Offer {
    Offer {
        entry,
        pieces,
        reading: Reading::Answers,
    }
}

/// A request without its last line, of about this many bytes.
fn unended_head(address: SocketAddrV4, bytes: usize) -> Vec<u8> {
    let padding = "a".repeat(bytes.saturating_sub(300));
    let mut head = upgrade_request(address, "/cable", &format!("X-Padding: {padding}\r\n"));
    head.truncate(head.len() - 2);
    head.into_bytes()
}

fn long_request_id(address: SocketAddrV4, bytes: usize) -> Vec<u8> {
    let line = format!("X-Request-ID: {}\r\n", "a".repeat(bytes));
    upgrade_request(address, "/cable", &line).into_bytes()
}

fn unended_body(path: &str) -> Vec<u8> {
    let length = UNFINISHED_BYTES + 10;
    let head =
        format!("POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n");
    [head.into_bytes(), vec![b' '; UNFINISHED_BYTES]].concat()
}

fn pings() -> Vec<u8> {
    let mut frame = Vec::new();
    client_frame(OPCODE_PING, b"", &mut frame);
    frame.repeat(FLOOD_BYTES / frame.len())
}

/// An identifier of [`STREAM`], about `bytes` longer than necessary.
fn identifier(number: usize, bytes: usize) -> String {
    json!({
        "channel": "$pubsub", "stream_name": STREAM, "number": number, "padding": "a".repeat(bytes.saturating_sub(100))
    })
    .to_string()
}

fn subscribes(count: usize, identifier_bytes: usize) -> Vec<Vec<u8>> {
    frames((0..count).map(|number| command("subscribe", &identifier(number, identifier_bytes))))
}

fn app_subscribes(count: usize, identifier_bytes: usize) -> Vec<Vec<u8>> {
    let padding = "a".repeat(identifier_bytes - 100);
    frames((0..count).map(|number| {
        let identifier =
            json!({ "channel": "GreedyChannel", "number": number, "padding": padding });
        command("subscribe", &identifier.to_string())
    }))
}

fn frames(texts: impl Iterator<Item = String>) -> Vec<Vec<u8>> {
    let frame = |text: String| {
        let mut frame = Vec::new();
        client_frame(OPCODE_TEXT, text.as_bytes(), &mut frame);
        frame
    };
    texts.map(frame).collect()
}

fn compressed(text: &str) -> Vec<u8> {
    compressed_frame(&deflated(text.as_bytes(), Compression::best()))
}

fn compressed_frame(payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    client_frame(OPCODE_TEXT, payload, &mut frame);
    frame[0] |= COMPRESSED;
    frame
}

/// Subscribe commands that differ only at their beginning, so that their common rest is deflated only once.
fn compressed_subscribes(count: usize, identifier_bytes: usize) -> Vec<Vec<u8>> {
    const FLUSHED: [u8; 4] = [0, 0, 0xff, 0xff];
    let text = |number: usize, bytes: usize| command("subscribe", &identifier(number, bytes));
    let whole = text(0, identifier_bytes);
    let padding_at = whole.find("aaaa").expect("there is padding");
    let rest = deflated(&whole.as_bytes()[padding_at..], Compression::best());
    let subscribes = (0..count).map(|number| {
        let short = text(number, 104);
        let padding_at = short.find("aaaa").expect("there is padding");
        let begin = deflated(&short.as_bytes()[..padding_at], Compression::best());
        compressed_frame(&[&begin[..], &FLUSHED, &rest].concat())
    });
    subscribes.collect()
}

fn reset_with_cookie(bytes: usize) -> Offer {
    let lines = format!("Cookie: session={}\r\n", "a".repeat(bytes));
    never(Entry::Reset { lines }, Vec::new())
}
