//! The server as a browser, a Rails app, a load balancer and an operator see it: the real binary on a port of its own.
//!
//! One file per behaviour. Every test runs once on io_uring and once on epoll.

#[path = "../support/mod.rs"]
mod support;

/// Makes two tests of each function: `name::on_io_uring` and `name::on_epoll`.
macro_rules! on_both_drivers {
    ($($(#[$meta:meta])* fn $name:ident($driver:ident: Driver) $body:block)+) => {
        $crate::on_both_drivers_while! { shared, $($(#[$meta])* fn $name($driver) $body)+ }
    };
}

/// The same for tests that need the whole machine.
macro_rules! alone_on_both_drivers {
    ($($(#[$meta:meta])* fn $name:ident($driver:ident: Driver) $body:block)+) => {
        $crate::on_both_drivers_while! { alone, $($(#[$meta])* fn $name($driver) $body)+ }
    };
}

macro_rules! on_both_drivers_while {
    ($machine:ident, $($(#[$meta:meta])* fn $name:ident($driver:ident) $body:block)+) => {
        $(
            $(#[$meta])*
            fn $name($driver: $crate::support::Driver) $body

            mod $name {
                use $crate::support::{Driver, machine};

                #[test]
                fn on_io_uring() {
                    let _machine = machine::$machine();
                    if Driver::IoUring.is_available() {
                        super::$name(Driver::IoUring);
                    }
                }

                #[test]
                fn on_epoll() {
                    let _machine = machine::$machine();
                    super::$name(Driver::Epoll);
                }
            }
        )+
    };
}

pub(crate) use on_both_drivers_while;

mod api;
mod bounds;
mod broadcast;
mod broker;
mod broker_abuse;
mod broker_figures;
mod campfire;
mod check;
mod cli;
mod commands;
mod compression;
mod console;
mod console_streams;
mod demo;
mod departures;
mod differential;
mod disconnects;
mod durable_streams;
mod exactness;
mod handshake;
mod harness;
mod http_front;
mod http_headers;
mod http_limits;
mod huge_publications;
mod interest;
mod jwt;
mod lifecycle;
mod load;
mod log_floods;
mod log_pressure;
mod logs;
mod long_polling;
mod lost_app;
mod metrics;
mod options;
mod origins;
mod outputs;
mod panics;
mod pings;
mod pubsub;
mod reporting;
mod rpc;
mod rpc_client;
mod shortages;
mod shutdown;
mod slow_clients;
mod sse;
mod stop_publications;
mod tls;
mod tls_reload;
mod troubleshooting;
mod websocket_frames;
