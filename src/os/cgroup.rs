//! The control groups of this process, which hold the limits of a container.

/// Directories of the process's cgroup for `controller` and of those above it, the innermost first: cgroup v2, v1, or both.
///
/// `proc_self_cgroup` is the text of `/proc/self/cgroup`. A directory may be missing: inside a container the path may be
/// that of the host, and then the root of the mount is the container's own group.
pub fn directories(proc_self_cgroup: &str, controller: &str) -> Vec<String> {
    let mut directories = Vec::new();
    for line in proc_self_cgroup.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else {
            continue;
        };
        let mount = match controllers {
            "" => "/sys/fs/cgroup".to_string(),
            list if list.split(',').any(|name| name == controller) => {
                format!("/sys/fs/cgroup/{controller}")
            }
            _ => continue,
        };
        let mut group = path.trim_end_matches('/');
        loop {
            directories.push(format!("{mount}{group}"));
            match group.rfind('/') {
                Some(end) => group = &group[..end],
                None => break,
            }
        }
    }
    directories
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_group_on_the_way_up_is_named() {
        fn check(proc_self_cgroup: &str, expected: &[&str]) {
            assert_eq!(
                directories(proc_self_cgroup, "memory"),
                expected,
                "{proc_self_cgroup:?}"
            );
        }
        check("", &[]);
        check("0::/\n", &["/sys/fs/cgroup"]);
        check(
            "0::/system.slice/a.service\n",
            &[
                "/sys/fs/cgroup/system.slice/a.service",
                "/sys/fs/cgroup/system.slice",
                "/sys/fs/cgroup",
            ],
        );
        check(
            "4:cpu,memory:/docker\n1:name=systemd:/x\n",
            &["/sys/fs/cgroup/memory/docker", "/sys/fs/cgroup/memory"],
        );
    }
}
