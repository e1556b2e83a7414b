//! Listening sockets, the options that every client socket inherits from them, and simple calls on sockets.

use std::io;
use std::mem::MaybeUninit;
use std::net::{
    IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream, ToSocketAddrs,
};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};
use std::thread;
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};

/// Requested accept queue; the kernel cuts it to `net.core.somaxconn`.
const BACKLOG: i32 = 65_535;
/// How long a port that is in use is tried again, and the pause between two tries.
const IN_USE_PATIENCE: Duration = Duration::from_secs(1);
const IN_USE_RETRY: Duration = Duration::from_millis(20);
/// Kernel keepalive: idle time and interval. Source: contract/websocket.md §1.
const KEEPALIVE: Duration = Duration::from_secs(15);
/// How long sent data may stay unacknowledged before the kernel drops the connection. It finds dead peers of sockets with
/// unacknowledged data, where keepalive does not work.
const USER_TIMEOUT: Duration = Duration::from_secs(60);
/// Unsent bytes that the kernel queues per socket before the socket is not writable any more. A stalled reader then costs
/// about 0.13 MB of kernel memory, not 4 MB. Fast readers keep the autotuning of the send buffer.
const NOTSENT_LOWAT_BYTES: u32 = 16_384;

/// The addresses to try for a configured bind host, best first.
///
/// An empty host, `0.0.0.0` and `::` mean every interface, IPv6 and IPv4. Source: contract/operations.md §11.
///
/// # Errors
/// The resolver's error for a name that is not known.
pub fn bind_addresses(host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    match host {
        "" | "0.0.0.0" | "::" | "[::]" => Ok(vec![
            SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), port),
            SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), port),
        ]),
        "localhost" => Ok(vec![SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port)]),
        name => {
            let mut addresses: Vec<_> = (name.trim_matches(['[', ']']), port)
                .to_socket_addrs()?
                .collect();
            addresses.sort_by_key(SocketAddr::is_ipv6);
            Ok(addresses)
        }
    }
}

/// Opens `count` listening sockets on one address, one for each shard; the kernel distributes connections among them.
///
/// Before that, the port is tried without `SO_REUSEPORT`. With it, a second server on the same port would start without an
/// error and would get half of the connections.
///
/// # Errors
/// The error of the last address tried, usually `AddrInUse`.
pub fn listen(host: &str, port: u16, count: usize) -> io::Result<Vec<TcpListener>> {
    let mut failure = io::Error::new(io::ErrorKind::NotFound, "the host has no address");
    for address in bind_addresses(host, port)? {
        match listen_on(address, count) {
            Ok(listeners) => return Ok(listeners),
            Err(error) => failure = error,
        }
    }
    Err(failure)
}

fn listen_on(address: SocketAddr, count: usize) -> io::Result<Vec<TcpListener>> {
    wait_until_free(address)?;
    let first = open_listener(address)?;
    let bound = first.local_addr()?;
    let mut listeners = vec![first];
    for _ in 1..count {
        listeners.push(open_listener(bound)?);
    }
    Ok(listeners)
}

/// Tries again for a short time: after a predecessor has exited, the kernel may keep the port for some milliseconds, because
/// it releases the rings of a process later than the process ends.
///
/// The socket is bound but does not listen: otherwise clients could enter its queue and would be reset when it closes.
fn wait_until_free(address: SocketAddr) -> io::Result<()> {
    let started = Instant::now();
    loop {
        match bind(address, false) {
            Err(error)
                if error.kind() == io::ErrorKind::AddrInUse
                    && started.elapsed() < IN_USE_PATIENCE =>
            {
                thread::sleep(IN_USE_RETRY);
            }
            result => return result.map(drop),
        }
    }
}

fn open_listener(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = bind(address, true)?;
    set_client_options(&socket)?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// A socket bound to an address. If another socket listens there, the kernel refuses this one unless both may share the
/// port.
fn bind(address: SocketAddr, reuse_port: bool) -> io::Result<Socket> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM.nonblocking().cloexec(),
        Some(Protocol::TCP),
    )?;
    socket.set_reuse_address(true)?;
    if reuse_port {
        socket.set_reuse_port(true)?;
    }
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.bind(&address.into())?;
    Ok(socket)
}

/// Sets options of the client sockets on the listening socket: Linux copies them to every accepted socket, which saves six
/// system calls per connection.
fn set_client_options(socket: &Socket) -> io::Result<()> {
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_keepalive(
        &TcpKeepalive::new()
            .with_time(KEEPALIVE)
            .with_interval(KEEPALIVE),
    )?;
    socket.set_tcp_user_timeout(Some(USER_TIMEOUT))?;
    socket.set_tcp_notsent_lowat(NOTSENT_LOWAT_BYTES)
}

/// Accepts a waiting connection, non-blocking and with the options of its listener.
///
/// # Errors
/// Those of accept4(2); `WouldBlock` when none waits.
pub fn accept(listener: &TcpListener) -> io::Result<(TcpStream, SocketAddr)> {
    let flags = libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    let (socket, address) = SockRef::from(listener).accept4(flags)?;
    let address = address
        .as_socket()
        .ok_or(io::ErrorKind::ConnectionAborted)?;
    Ok((socket.into(), address))
}

/// Appends what has arrived to `buffer`, at most its spare capacity; never waits. 0 = the far end has closed.
///
/// # Errors
/// Those of recv(2); `WouldBlock` when nothing is there.
pub fn receive(socket: &impl AsFd, buffer: &mut Vec<u8>) -> io::Result<usize> {
    let socket = SockRef::from(socket);
    let bytes = socket.recv_with_flags(buffer.spare_capacity_mut(), libc::MSG_DONTWAIT)?;
    // SAFETY: recv has written the first `bytes` bytes of the spare capacity, and says no more than fit into it.
    unsafe { buffer.set_len(buffer.len() + bytes) };
    Ok(bytes)
}

/// Hands the kernel as many of `bytes` as it takes now; never waits. Returns their number.
///
/// # Errors
/// Those of send(2); `WouldBlock` when there is no room.
pub fn send(socket: &impl AsFd, bytes: &[u8]) -> io::Result<usize> {
    SockRef::from(socket).send_with_flags(bytes, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL)
}

/// True when the connection is open and there is nothing to read, neither bytes nor its end.
pub fn is_quiet(socket: &impl AsFd) -> bool {
    let mut byte = [MaybeUninit::uninit()];
    let peeked =
        SockRef::from(socket).recv_with_flags(&mut byte, libc::MSG_PEEK | libc::MSG_DONTWAIT);
    matches!(peeked, Err(error) if error.kind() == io::ErrorKind::WouldBlock)
}

/// Closes the sending side of a connection.
///
/// # Errors
/// ENOTCONN when the far end has closed already.
pub fn finish_writing(socket: &impl AsFd) -> io::Result<()> {
    SockRef::from(socket).shutdown(Shutdown::Write)
}

/// Makes the later close of a connection a reset.
///
/// # Errors
/// Those of setsockopt(2).
pub fn reset_on_close(socket: &impl AsFd) -> io::Result<()> {
    SockRef::from(socket).set_linger(Some(Duration::ZERO))
}

/// The descriptor of a monoio stream, which does not implement [`AsFd`].
///
/// Not generic over `AsRawFd`: plain numbers implement that too, and do not own a descriptor.
pub fn borrow(stream: &monoio::net::TcpStream) -> BorrowedFd<'_> {
    // SAFETY: the stream keeps its descriptor open for as long as it is borrowed itself.
    unsafe { BorrowedFd::borrow_raw(stream.as_raw_fd()) }
}

/// Takes over the descriptor of a monoio stream. Not generic over `IntoRawFd` for the same reason as [`borrow`].
pub fn own(stream: monoio::net::TcpStream) -> OwnedFd {
    // SAFETY: the stream was the only owner of its open descriptor, and `into_raw_fd` gives it up without closing it.
    unsafe { OwnedFd::from_raw_fd(stream.into_raw_fd()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listeners_share_one_port_and_a_second_server_is_refused() {
        let listeners = listen("127.0.0.1", 0, 3).expect("port 0 is always free");
        let port = listeners[0].local_addr().expect("bound").port();
        for listener in &listeners {
            assert_eq!(listener.local_addr().expect("bound").port(), port);
        }
        let error = listen("127.0.0.1", port, 1).expect_err("the port is taken");
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    }

    /// For every kind of address, and for every kind of listener.
    #[test]
    fn a_bound_socket_alone_finds_out_who_listens() {
        for host in ["127.0.0.1", "0.0.0.0", "[::1]"] {
            let Ok(listeners) = listen(host, 0, 2) else {
                assert_eq!(host, "[::1]", "only IPv6 may be switched off");
                continue;
            };
            let bound = listeners[0].local_addr().expect("bound");
            let error = bind(bound, false).expect_err("listened to");
            assert_eq!(error.kind(), io::ErrorKind::AddrInUse, "{host}");
            drop(listeners);
            wait_until_free(bound).expect("nobody has it any more");
        }
        // A server that does not share its port.
        let other = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let error = bind(other.local_addr().expect("bound"), false).expect_err("listened to");
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    }

    /// A client that comes between the try and the listeners is either refused by the kernel or served. It is never accepted
    /// and then reset.
    #[test]
    fn the_try_takes_no_client() {
        let probe = bind(SocketAddr::from(([127, 0, 0, 1], 0)), false).expect("a free port");
        let address = probe
            .local_addr()
            .ok()
            .and_then(|address| address.as_socket())
            .expect("bound");
        let refused = TcpStream::connect(address).expect_err("nobody listens");
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
    }

    #[test]
    fn clients_inherit_the_options_of_their_listener() {
        let listener = &listen("127.0.0.1", 0, 1).expect("port 0 is always free")[0];
        let address = listener.local_addr().expect("bound");
        let _far = TcpStream::connect(address).expect("the backlog has room");
        let (client, _) = accept(listener).expect("connected");
        let client = SockRef::from(&client);
        assert!(client.nonblocking().expect("an option"));
        assert!(client.tcp_nodelay().expect("an option"));
        assert!(client.keepalive().expect("an option"));
        assert_eq!(client.tcp_keepalive_time().expect("an option"), KEEPALIVE);
        assert_eq!(
            client.tcp_keepalive_interval().expect("an option"),
            KEEPALIVE
        );
        assert_eq!(
            client.tcp_user_timeout().expect("an option"),
            Some(USER_TIMEOUT)
        );
        assert_eq!(
            client.tcp_notsent_lowat().expect("an option"),
            NOTSENT_LOWAT_BYTES
        );
    }

    #[test]
    fn nothing_waits_for_the_far_end() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("bound");
        let near = TcpStream::connect(address).expect("listening");
        let (mut far, _) = listener.accept().expect("connected");
        let mut buffer = Vec::with_capacity(3);
        assert!(is_quiet(&near));
        let error = receive(&near, &mut buffer).expect_err("nothing was sent");
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        assert_eq!(send(&near, b"ping").expect("there is room"), 4);
        io::Write::write_all(&mut far, b"pong").expect("open");
        while is_quiet(&near) {
            thread::yield_now();
        }
        assert_eq!(receive(&near, &mut buffer).expect("bytes are there"), 3);
        assert_eq!(buffer, b"pon");
        drop(far);
        assert!(!is_quiet(&near));
    }

    #[test]
    fn hosts_become_addresses() {
        fn check(host: &str, expected: &[&str]) {
            let found: Vec<String> = bind_addresses(host, 80)
                .expect("no lookup needed")
                .iter()
                .map(ToString::to_string)
                .collect();
            assert_eq!(found, expected, "{host:?}");
        }
        check("", &["[::]:80", "0.0.0.0:80"]);
        check("0.0.0.0", &["[::]:80", "0.0.0.0:80"]);
        check("localhost", &["127.0.0.1:80"]);
        check("127.0.0.7", &["127.0.0.7:80"]);
        check("[::1]", &["[::1]:80"]);
    }
}
