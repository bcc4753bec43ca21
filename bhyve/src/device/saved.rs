// SPDX-License-Identifier: BSD-2-Clause

//! The form in which a device's state is written down: a plain struct with a kind and a version (the records of
//! `usr.sbin/bhyve/snapshot.c`).

use serde::Serialize;
use serde::de::DeserializeOwned;

/// What a device hands over when it is saved. `bytes` is postcard of a plain struct that is not the runtime's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SavedState {
    /// Which struct it is, such as `virtio-blk`.
    pub kind: &'static str,
    /// Grows with every incompatible change of the struct.
    pub version: u32,
    /// The struct.
    pub bytes: Vec<u8>,
}

/// A saved state as it was read from a checkpoint; nothing about it is trusted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SavedBytes {
    /// See [`SavedState::kind`].
    pub kind: String,
    /// See [`SavedState::version`].
    pub version: u32,
    /// See [`SavedState::bytes`].
    pub bytes: Vec<u8>,
}

/// Why a device cannot be saved.
#[derive(Debug, thiserror::Error)]
pub enum SaveError {
    /// The state does not fit its form.
    #[error("cannot write the state down")]
    Encode(#[from] postcard::Error),
    /// The device as it is configured or at this moment has something that cannot be carried over.
    #[error("{0}")]
    Unsupported(String),
}

/// Why a saved state is refused.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The state of something else.
    #[error("the saved state is of kind \"{found}\", not \"{wanted}\"")]
    Kind {
        /// What the device saves.
        wanted: &'static str,
        /// What was given.
        found: String,
    },
    /// A version that this program does not know.
    #[error("the saved state has version {found}, known is {known}")]
    Version {
        /// What this program writes.
        known: u32,
        /// What was given.
        found: u32,
    },
    /// The bytes are no such struct.
    #[error("the saved state is corrupt")]
    Decode(#[from] postcard::Error),
    /// Bytes after the struct's end.
    #[error("the saved state is followed by {0} bytes that belong to nothing")]
    Trailing(usize),
    /// Something outside of the checkpoint, such as a disk, that is not as the guest knows it.
    #[error("{0}")]
    Stale(String),
    /// A field that cannot be, or that contradicts the configuration.
    #[error("{0}")]
    Invalid(String),
}

impl StateError {
    /// The same of one part of a device. What is only past stays so.
    pub fn of(self, part: &str) -> Self {
        match self {
            Self::Stale(why) => Self::Stale(format!("{part}: {why}")),
            other => Self::Invalid(format!("{part}: {other}")),
        }
    }
}

/// A type that a device's state is saved as. Checkpoints outlive the program, so a change of the type is a new version, and the
/// type reads every older version that a release has written.
pub trait SavedLayout: Serialize + DeserializeOwned {
    /// See [`SavedState::kind`].
    const KIND: &'static str;
    /// See [`SavedState::version`].
    const VERSION: u32;

    /// Reads the struct of an older version. A type keeps the struct of each older version that it can read, takes it with
    /// [`read_exactly`] and makes itself of it. None does as long as no release has written another version.
    fn upgrade(version: u32, _bytes: &[u8]) -> Result<Self, StateError> {
        Err(StateError::Version {
            known: Self::VERSION,
            found: version,
        })
    }
}

/// Reads a struct of which all `bytes` are.
pub fn read_exactly<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, StateError> {
    let (state, rest) = postcard::take_from_bytes(bytes)?;
    if rest.is_empty() {
        Ok(state)
    } else {
        Err(StateError::Trailing(rest.len()))
    }
}

impl SavedState {
    /// Writes down `state`.
    pub fn encode<T: SavedLayout>(state: &T) -> Result<Self, SaveError> {
        Ok(Self {
            kind: T::KIND,
            version: T::VERSION,
            bytes: postcard::to_stdvec(state)?,
        })
    }
}

impl From<SavedState> for SavedBytes {
    fn from(state: SavedState) -> Self {
        let SavedState {
            kind,
            version,
            bytes,
        } = state;
        Self {
            kind: kind.to_owned(),
            version,
            bytes,
        }
    }
}

impl SavedBytes {
    /// Reads a state of this kind, whichever of its versions it is. The fields are still to be checked by the device.
    pub fn decode<T: SavedLayout>(&self) -> Result<T, StateError> {
        if self.kind != T::KIND {
            return Err(StateError::Kind {
                wanted: T::KIND,
                found: self.kind.clone(),
            });
        }
        if self.version == T::VERSION {
            read_exactly(&self.bytes)
        } else {
            T::upgrade(self.version, &self.bytes)
        }
    }
}

/// Looks up the saved states of a checkpoint by record name.
pub type States<'a> = &'a dyn Fn(&str) -> Option<SavedBytes>;

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Serialize, Deserialize)]
    struct First {
        level: u8,
    }

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Second {
        level: u16,
        masked: bool,
    }

    impl SavedLayout for Second {
        const KIND: &'static str = "upgraded";
        const VERSION: u32 = 2;

        fn upgrade(version: u32, bytes: &[u8]) -> Result<Self, StateError> {
            match version {
                1 => {
                    let First { level } = read_exactly(bytes)?;
                    Ok(Self {
                        level: level.into(),
                        masked: false,
                    })
                }
                found => Err(StateError::Version {
                    known: Self::VERSION,
                    found,
                }),
            }
        }
    }

    fn saved(version: u32, bytes: &[u8]) -> SavedBytes {
        SavedBytes {
            kind: "upgraded".to_owned(),
            version,
            bytes: bytes.to_vec(),
        }
    }

    #[test]
    fn an_older_version_is_upgraded_and_a_newer_one_refused() {
        let second = |level, masked| Second { level, masked };
        assert_eq!(saved(1, &[7]).decode::<Second>().unwrap(), second(7, false));
        assert_eq!(
            saved(2, &[7, 1]).decode::<Second>().unwrap(),
            second(7, true)
        );
        for version in [0, 3] {
            let error = saved(version, &[7]).decode::<Second>().unwrap_err();
            assert!(matches!(error, StateError::Version { known: 2, found } if found == version));
        }
        let error = saved(1, &[7, 1]).decode::<Second>().unwrap_err();
        assert!(matches!(error, StateError::Trailing(1)), "{error}");
    }
}
