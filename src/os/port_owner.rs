//! Which process listens on a port. Asked only when a listener was refused, so that the error can name the process.
//!
//! The tables of `/proc/net` contain the inode of every listening socket, and `/proc/<pid>/fd` shows which process has it
//! open. Without root, the processes of other users and of other containers cannot be read; then nothing is found.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::os::sockets::bind_addresses;

/// Descriptors that are read of one process. A server opens its listeners first, so they are among these; it may have a
/// million other descriptors.
const DESCRIPTORS_MAX: usize = 4096;
/// `TCP_LISTEN`, as the tables write it.
const LISTENING: &str = "0A";

/// The process that holds a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortOwner {
    pub pid: u32,
    /// The name in the kernel. Not the command line, which may contain secrets.
    pub program: String,
}

/// Looks for the process that holds the port, after a listener on `host` and `port` was refused.
pub fn find(host: &str, port: u16) -> Option<PortOwner> {
    let wanted = bind_addresses(host, port).ok()?;
    let mut inodes = Vec::new();
    for table in ["/proc/net/tcp", "/proc/net/tcp6"] {
        let text = fs::read_to_string(table).unwrap_or_default();
        inodes.extend(listening_inodes(&text, &wanted));
    }
    let pid = holder(&inodes)?;
    let program = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    Some(PortOwner {
        pid,
        // A process chooses its own name, and this text goes to a terminal, so control characters are removed.
        program: program.chars().filter(|char| !char.is_control()).collect(),
    })
}

/// The inodes of the listening sockets of a table of `/proc/net` that collide with one of the addresses.
fn listening_inodes(table: &str, wanted: &[SocketAddr]) -> Vec<u64> {
    table
        .lines()
        .skip(1)
        .filter_map(|line| {
            // sl local_address rem_address st queues timer retransmits uid timeout inode
            let columns: Vec<&str> = line.split_whitespace().collect();
            let address = decode_address(columns.get(1)?)?;
            let collides = columns.get(3) == Some(&LISTENING)
                && wanted.iter().any(|wanted| collide(*wanted, address));
            collides.then(|| columns.get(9)?.parse().ok()).flatten()
        })
        .collect()
}

/// `0100007F:1F90`: words of four bytes in the order of this machine, then the port as a number.
fn decode_address(text: &str) -> Option<SocketAddr> {
    let (address, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let mut bytes = [0; 16];
    if !address.is_ascii() || ![8, 32].contains(&address.len()) {
        return None;
    }
    for (word, bytes) in bytes.chunks_mut(4).take(address.len() / 8).enumerate() {
        let word = u32::from_str_radix(&address[word * 8..][..8], 16).ok()?;
        bytes.copy_from_slice(&word.to_ne_bytes());
    }
    let ip = if address.len() == 8 {
        IpAddr::V4(Ipv4Addr::new(bytes[0], bytes[1], bytes[2], bytes[3]))
    } else {
        IpAddr::V6(Ipv6Addr::from(bytes))
    };
    Some(SocketAddr::new(ip, port))
}

/// Whether the kernel refuses one of two listeners: the ports are equal, and the addresses are equal or one covers the
/// other.
fn collide(left: SocketAddr, right: SocketAddr) -> bool {
    let (left_ip, right_ip) = (left.ip().to_canonical(), right.ip().to_canonical());
    left.port() == right.port()
        && (left_ip == right_ip || left_ip.is_unspecified() || right_ip.is_unspecified())
}

/// The process that has one of the sockets open.
fn holder(inodes: &[u64]) -> Option<u32> {
    let names: Vec<String> = inodes
        .iter()
        .map(|inode| format!("socket:[{inode}]"))
        .collect();
    let processes = fs::read_dir("/proc").ok()?.flatten();
    processes
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .find(|pid| holds_one(*pid, &names))
}

fn holds_one(pid: u32, names: &[String]) -> bool {
    let Ok(descriptors) = fs::read_dir(format!("/proc/{pid}/fd")) else {
        return false;
    };
    descriptors
        .flatten()
        .take(DESCRIPTORS_MAX)
        .filter_map(|descriptor| fs::read_link(descriptor.path()).ok())
        .any(|target| names.iter().any(|name| target.as_os_str() == name.as_str()))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::process;

    use super::*;

    const HEAD: &str = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n";

    fn word(bytes: [u8; 4]) -> String {
        format!("{:08X}", u32::from_ne_bytes(bytes))
    }

    fn line(address: &str, port: u16, state: &str, inode: u64) -> String {
        format!(
            "   0: {address}:{port:04X} 00000000:0000 {state} 00000000:00000000 00:00000000 00000000  1000        0 {inode} 1 \
             0000000000000000 100 0 0 10 0\n"
        )
    }

    fn addresses(texts: &[&str]) -> Vec<SocketAddr> {
        texts
            .iter()
            .map(|text| text.parse().expect("an address"))
            .collect()
    }

    #[test]
    fn listeners_that_are_in_the_way_are_found_in_the_table() {
        let loopback = word([127, 0, 0, 1]);
        let other = word([10, 0, 0, 1]);
        let any = word([0, 0, 0, 0]);
        let table = [
            HEAD.to_owned(),
            line(&loopback, 8080, "0A", 1),
            line(&other, 8080, "0A", 2),
            line(&any, 8090, "0A", 3),
            line(&loopback, 8080, "01", 4),
        ]
        .concat();
        fn check(table: &str, wanted: &[&str], expected: &[u64]) {
            assert_eq!(
                listening_inodes(table, &addresses(wanted)),
                expected,
                "{wanted:?}"
            );
        }
        check(&table, &["127.0.0.1:8080"], &[1]);
        check(&table, &["[::]:8080", "0.0.0.0:8080"], &[1, 2]);
        check(&table, &["127.0.0.1:8090"], &[3]);
        check(&table, &["127.0.0.1:8081"], &[]);
    }

    #[test]
    fn the_table_of_ipv6_has_four_words() {
        let any = "0".repeat(32);
        let mapped = [
            word([0; 4]),
            word([0; 4]),
            word([0, 0, 255, 255]),
            word([127, 0, 0, 1]),
        ]
        .concat();
        let table = [
            HEAD.to_owned(),
            line(&any, 80, "0A", 1),
            line(&mapped, 81, "0A", 2),
        ]
        .concat();
        assert_eq!(
            listening_inodes(&table, &addresses(&["127.0.0.1:80", "127.0.0.1:81"])),
            [1, 2]
        );
    }

    #[test]
    fn a_table_that_looks_different_names_nobody() {
        for table in [
            "",
            "\n",
            "head\nx\n",
            "head\n 0: 0100007F 0 0A\n",
            "head\n 0: éééé:0050 0 0A 0 0 0 0 0 1\n",
            "head\n 0: 0100007F:0050 0 0A 0 0 0 0 0 inode\n",
        ] {
            assert_eq!(
                listening_inodes(table, &addresses(&["0.0.0.0:80"])),
                [0; 0],
                "{table:?}"
            );
        }
    }

    #[test]
    fn this_process_is_found_as_the_owner_of_its_listener() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = listener.local_addr().expect("bound").port();
        let owner = find("127.0.0.1", port).expect("a process may look at itself");
        assert_eq!(owner.pid, process::id());
        assert!(!owner.program.is_empty());
        drop(listener);
        assert_eq!(find("127.0.0.1", port), None);
    }
}
