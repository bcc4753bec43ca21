// SPDX-License-Identifier: BSD-2-Clause

//! A VM of the software vmm in another process, reached through its control socket.

use std::ops::Range;
use std::path::{Path, PathBuf};

use ::vmm::Errno;
use vmm_abi::{VM_GET_TOPOLOGY, VM_SUSPEND, VMMCTL_VM_DESTROY, iocparm_len};

use super::{Backend, HostMapping, Kind};
use crate::control::{ControlClient, ControlError, clear_away};

/// The VM behind a control socket. Each request has a connection of its own, so that a process that falls silent or
/// starts anew costs one request only.
#[derive(Debug)]
pub struct Remote {
    rundir: PathBuf,
    name: String,
}

impl Remote {
    /// Finds the VM.
    ///
    /// # Errors
    ///
    /// `ENOENT` or `ECONNREFUSED` if no process has a VM of that name; `EOPNOTSUPP` if it is the kernel's; `EPROTO` for an
    /// answer of another form.
    pub fn open(rundir: &Path, name: &str) -> Result<Self, ControlError> {
        let remote = Self {
            rundir: rundir.to_owned(),
            name: name.to_owned(),
        };
        let mut topology = vec![0; iocparm_len(VM_GET_TOPOLOGY)];
        remote.insist(VM_GET_TOPOLOGY, &mut topology).1?;
        Ok(remote)
    }

    /// A request that ends the VM, and with it the process that is to answer.
    fn end(&self, request: u64, arg: &mut [u8]) -> Result<(), ControlError> {
        match self.insist(request, arg) {
            (true, Err(error)) if is_of_an_end(error.errno()) => Ok(()),
            (_, result) => result,
        }
    }

    /// A request that may be made more than once; whether it has been. A connection that ends without an answer says that the process
    /// is ending, with the request carried out or not, or that the connection gave way to others: who looks for the VM again finds out.
    fn insist(&self, request: u64, arg: &mut [u8]) -> (bool, Result<(), ControlError>) {
        const ATTEMPTS: usize = 5;
        let mut again = false;
        for _ in 1..ATTEMPTS {
            match self.call(request, arg, &mut []) {
                Err(ControlError::Unanswered) => again = true,
                result => return (again, result),
            }
        }
        (true, self.call(request, arg, &mut []))
    }

    fn call(
        &self,
        request: u64,
        arg: &mut [u8],
        buffers: &mut [&mut [u8]],
    ) -> Result<(), ControlError> {
        ControlClient::connect(&self.rundir, &self.name)?.ioctl(request, arg, buffers)
    }
}

impl Backend for Remote {
    fn kind(&self) -> Kind {
        Kind::Remote
    }

    fn ioctl(&self, request: u64, arg: &mut [u8], buffers: &mut [&mut [u8]]) -> Result<(), Errno> {
        let result = match request {
            VM_SUSPEND => self.end(request, arg),
            _ => self.call(request, arg, buffers),
        };
        result.map_err(|error| error.errno())
    }

    /// Memory of another process cannot be mapped over a socket.
    fn map_sysmem(&self, _gpa: u64, _len: u64) -> Result<HostMapping, Errno> {
        Err(Errno(libc::EOPNOTSUPP))
    }

    fn map_devmem(&self, _segment: &str, _len: u64) -> Result<HostMapping, Errno> {
        Err(Errno(libc::EOPNOTSUPP))
    }

    /// Nothing is mapped, so that nothing can have been written.
    fn memory_written(&self, _gpa: u64, _len: u64) {}

    fn populated(&self, _gpa: u64, _len: u64) -> Result<Vec<Range<u64>>, Errno> {
        Err(Errno(libc::EOPNOTSUPP))
    }

    /// Not known here: a client has no use for it.
    fn tsc_hz(&self) -> Option<u64> {
        None
    }

    /// A VM that has ended since it was found is destroyed; what it has left behind is removed.
    fn destroy(&self) -> Result<(), Errno> {
        let mut arg = vec![0; iocparm_len(VMMCTL_VM_DESTROY)];
        match self.end(VMMCTL_VM_DESTROY, &mut arg) {
            Err(error) if !is_of_an_end(error.errno()) => Err(error.errno()),
            _ => match clear_away(&self.rundir, &self.name) {
                Ok(_) => Ok(()),
                Err(error) => Err(error.errno()),
            },
        }
    }
}

/// Whether a request fails with that because the VM has ended: the process is gone, the VM is, or it is stopped.
fn is_of_an_end(errno: Errno) -> bool {
    matches!(
        errno.0,
        libc::ENOENT | libc::ECONNREFUSED | libc::ENXIO | libc::EINVAL | libc::EALREADY
    )
}
