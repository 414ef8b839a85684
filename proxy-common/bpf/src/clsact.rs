//! Programs on clsact qdiscs: the replacement for tcx before Linux 6.6, and the attachment on interfaces of
//! our own pods.
//!
//! A filter has no link to pin. It outlives the agent, which finds it again by its position and name. The
//! kernel exchanges the program of a filter in one step, like that of a link. Filters of others stay and run
//! in the order of their priorities. If our program returns `TC_ACT_UNSPEC`, the next filter sees the packet.
//!
//! An interface has at most one such qdisc, which all processes share. An empty directory below the bpf root
//! records each qdisc that we made. With our last filter we remove such a qdisc too, if it has no other
//! filter.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use super::error::BpfError;
use super::links::InterfaceRole;
use super::pins::Removed;
use super::sys;
use super::traffic_control::{Direction, Filter, NewFilter, Position, Qdisc, TrafficControl};

/// Before the priorities that the kernel gives to filters without one, which are at most 49152.
const POSITION: Position = Position {
    priority: 77,
    handle: 0x6d72,
};
/// The prefix of our filters' names, which the program's name follows.
const NAME: &str = "millrace-";

/// A program that is attached to an interface.
pub struct Attached {
    /// The interface.
    pub interface: u32,
    /// The direction of the packets that it sees.
    pub direction: Direction,
    /// The program's name.
    pub program: String,
    /// The id of the program.
    pub id: u32,
}

/// All our programs on the qdiscs of a network namespace.
pub struct Clsact {
    control: TrafficControl,
    /// The directory that records the qdiscs that we made.
    made: PathBuf,
}

impl Clsact {
    /// For the network namespace of this thread. `made` is the directory that records our qdiscs.
    pub fn open(made: PathBuf) -> Result<Self, BpfError> {
        let control = TrafficControl::open()
            .map_err(BpfError::syscall("opening a netlink socket for traffic control"))?;
        Ok(Self { control, made })
    }

    /// All our attached programs.
    pub fn attached(&mut self) -> Result<Vec<Attached>, BpfError> {
        let interfaces = match self.control.interfaces() {
            // A kernel without traffic control has no qdiscs.
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Vec::new(),
            found => found.map_err(BpfError::syscall("listing qdiscs"))?,
        };
        let mut attached = Vec::new();
        for interface in interfaces {
            for direction in Direction::ALL {
                let Some(filter) = self.filter(interface, direction)? else {
                    continue;
                };
                if let Some(program) = filter.name.strip_prefix(NAME) {
                    attached.push(Attached {
                        interface,
                        direction,
                        program: program.to_owned(),
                        id: filter.program,
                    });
                }
            }
        }
        Ok(attached)
    }

    /// Attaches a program, unless it is already attached.
    pub fn attach(
        &mut self,
        interface: u32,
        direction: Direction,
        program: &str,
        fd: &OwnedFd,
    ) -> Result<(), BpfError> {
        self.ensure_qdisc(interface, direction)?;
        let wanted = sys::program_info(fd.as_fd());
        let wanted = wanted.map_err(BpfError::syscall(format!("reading the program {program}")))?;
        let new = new_filter(direction, program, fd);
        match self.filter(interface, direction)? {
            Some(filter) if filter.name == new.name && filter.program == wanted.id => return Ok(()),
            Some(filter) if !filter.name.starts_with(NAME) => {
                return Err(BpfError::ForeignFilter {
                    interface,
                    name: filter.name,
                    priority: POSITION.priority,
                });
            }
            _ => {}
        }
        self.control
            .set_filter(interface, &new)
            .map_err(BpfError::syscall(format!(
                "attaching {program} to interface {interface} by traffic control"
            )))
    }

    /// Attaches programs to a new interface. Returns false if another process has made the qdisc already:
    /// then the caller has to check each program.
    pub fn attach_new(
        &mut self,
        interface: u32,
        programs: &[(Direction, &str, &OwnedFd)],
    ) -> Result<bool, BpfError> {
        let programs = programs
            .iter()
            .map(|(direction, program, fd)| new_filter(*direction, program, fd));
        let programs: Vec<_> = programs.collect();
        let note = self.note(interface);
        make_note(&note)?;
        match self.control.add_clsact_with_filters(interface, &programs) {
            // Only another process of ours does that, and it uses the same record.
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(false),
            made => made.map(|()| true).map_err(BpfError::syscall(format!(
                "attaching programs to interface {interface} by traffic control"
            ))),
        }
    }

    /// Whether a program of ours is attached at its place, of any generation.
    pub fn is_attached(
        &mut self,
        interface: u32,
        direction: Direction,
        program: &str,
    ) -> Result<bool, BpfError> {
        Ok(self.attached_program(interface, direction, program)?.is_some())
    }

    /// The id of our program at its place.
    pub fn attached_program(
        &mut self,
        interface: u32,
        direction: Direction,
        program: &str,
    ) -> Result<Option<u32>, BpfError> {
        let found = self.filter(interface, direction)?;
        let ours = found.filter(|filter| filter.name.strip_prefix(NAME) == Some(program));
        Ok(ours.map(|filter| filter.program))
    }

    /// The filters of others that packets of a direction pass before our program, if it is attached there.
    pub fn before(&mut self, interface: u32, direction: Direction) -> Result<Vec<Filter>, BpfError> {
        let filters = self.filters(interface, direction)?;
        let ours = |filter: &Filter| filter.position == POSITION && filter.name.starts_with(NAME);
        if !filters.iter().any(ours) {
            return Ok(Vec::new());
        }
        // The kernel lists them in the order in which it runs them.
        Ok(filters.into_iter().take_while(|filter| !ours(filter)).collect())
    }

    /// Detaches our programs from an interface, and removes the qdisc if we made it and it has no other
    /// filter.
    pub fn detach(&mut self, interface: u32) -> Result<(), BpfError> {
        for direction in Direction::ALL {
            self.detach_one(interface, direction)?;
        }
        self.release_qdisc(interface)
    }

    /// Detaches our program for one direction from an interface.
    pub fn detach_one(&mut self, interface: u32, direction: Direction) -> Result<(), BpfError> {
        let ours = self.filter(interface, direction)?;
        if ours.is_some_and(|filter| filter.name.starts_with(NAME)) {
            self.control
                .remove_filter(interface, direction, POSITION)
                .or_else(gone)
                .map_err(BpfError::syscall(format!(
                    "detaching from interface {interface} by traffic control"
                )))?;
        }
        Ok(())
    }

    /// The filter at our position.
    fn filter(&mut self, interface: u32, direction: Direction) -> Result<Option<Filter>, BpfError> {
        let filters = self.filters(interface, direction)?;
        Ok(filters.into_iter().find(|filter| filter.position == POSITION))
    }

    fn filters(&mut self, interface: u32, direction: Direction) -> Result<Vec<Filter>, BpfError> {
        match self.control.filters(interface, direction) {
            // Without the interface or the qdisc there are no filters.
            Err(error) if is_gone(&error) => Ok(Vec::new()),
            found => found.map_err(BpfError::syscall(format!(
                "listing filters of interface {interface}"
            ))),
        }
    }

    fn ensure_qdisc(&mut self, interface: u32, direction: Direction) -> Result<(), BpfError> {
        let failed = |error: io::Error| {
            BpfError::syscall(format!("giving interface {interface} a clsact qdisc"))(error)
        };
        match (self.control.qdisc(interface).map_err(failed)?, direction) {
            (Qdisc::Clsact, _) | (Qdisc::Ingress, Direction::Ingress) => return Ok(()),
            (Qdisc::Ingress, Direction::Egress) => return Err(BpfError::ForeignQdisc { interface }),
            (Qdisc::None, _) => {}
        }
        // The record comes first: a qdisc without a record would stay for ever.
        let note = self.note(interface);
        make_note(&note)?;
        match self.control.add_clsact(interface) {
            Ok(()) => Ok(()),
            // Another process has made the qdisc meanwhile.
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {
                if !is_of_own_pod(interface) {
                    let _ = fs::remove_dir(&note);
                }
                Ok(())
            }
            Err(error) => {
                let _ = fs::remove_dir(&note);
                Err(failed(error))
            }
        }
    }

    /// Removes a qdisc that we made if it has no filter.
    fn release_qdisc(&mut self, interface: u32) -> Result<(), BpfError> {
        let note = self.note(interface);
        if !note.exists() {
            return Ok(());
        }
        for direction in Direction::ALL {
            if !self.filters(interface, direction)?.is_empty() {
                return Ok(());
            }
        }
        self.control
            .remove_clsact(interface)
            .or_else(gone)
            .map_err(BpfError::syscall(format!(
                "removing the clsact qdisc of interface {interface}"
            )))?;
        forget_note(&note)
    }

    fn note(&self, interface: u32) -> PathBuf {
        self.made.join(interface.to_string())
    }

    /// Removes the record of the qdisc of a removed interface.
    pub fn forget(made: &Path, interface: u32) {
        let _ = fs::remove_dir(made.join(interface.to_string()));
    }

    /// Removes the records of the qdiscs that we made on interfaces that are gone.
    pub fn forget_gone(&mut self) -> Result<(), BpfError> {
        for interface in noted(&self.made) {
            if matches!(self.control.qdisc(interface), Err(error) if is_gone(&error)) {
                forget_note(&self.note(interface))?;
            }
        }
        Ok(())
    }
}

/// Whether our plugin made an interface. Then only the plugin and an agent of ours give it a qdisc, perhaps
/// at the same time, and both use the same record.
pub(super) fn is_of_own_pod(interface: u32) -> bool {
    let name = nix::net::if_::if_indextoname(interface);
    let name = name.ok().and_then(|name| name.into_string().ok());
    name.is_some_and(|name| InterfaceRole::of_pod(&name) == InterfaceRole::OwnPod)
}

fn new_filter<'a>(direction: Direction, program: &str, fd: &'a OwnedFd) -> NewFilter<'a> {
    NewFilter {
        direction,
        position: POSITION,
        name: format!("{NAME}{program}"),
        program: fd.as_fd(),
    }
}

/// Detaches all our programs from the interfaces of this thread's network namespace. Also removes the qdiscs
/// that `made` records as ours.
pub fn remove_all(made: Option<&Path>) -> Result<Vec<Removed>, BpfError> {
    let mut clsact = Clsact::open(made.map(Path::to_path_buf).unwrap_or_default())?;
    let mut removed = Vec::new();
    for attached in clsact.attached()? {
        clsact.detach_one(attached.interface, attached.direction)?;
        removed.push(Removed {
            kind: "filter".to_owned(),
            name: format!("{} of interface {}", attached.program, attached.interface),
        });
    }
    let Some(made) = made else { return Ok(removed) };
    for interface in noted(made) {
        clsact.release_qdisc(interface)?;
        // Other filters use it now, or its interface is gone: it is not ours any more.
        let _ = fs::remove_dir(clsact.note(interface));
    }
    if made.exists() {
        fs::remove_dir(made).map_err(BpfError::file("removing directory", made))?;
    }
    Ok(removed)
}

/// Removes a record. The agent and a running plugin may both try that.
fn forget_note(note: &Path) -> Result<(), BpfError> {
    match fs::remove_dir(note) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(BpfError::file("removing directory", note)(error))
        }
        _ => Ok(()),
    }
}

/// The interfaces whose qdisc we made, according to the records.
fn noted(made: &Path) -> Vec<u32> {
    let entries = fs::read_dir(made).into_iter().flatten().flatten();
    let mut interfaces: Vec<u32> = entries
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect();
    interfaces.sort_unstable();
    interfaces
}

/// The kernel returns ENODEV without an interface, EINVAL without a qdisc, and ENOENT without a filter.
fn is_gone(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ENODEV | libc::EINVAL | libc::ENOENT)
    )
}

fn gone(error: io::Error) -> io::Result<()> {
    if is_gone(&error) { Ok(()) } else { Err(error) }
}

/// Makes a directory, for root only like all pins.
fn make_note(note: &Path) -> Result<(), BpfError> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(note);
    made.map_err(BpfError::file("making directory", note))
}
