// SPDX-License-Identifier: BSD-2-Clause

//! Macros that declare registers, values and numbers. What they declare they also put into a list, from which
//! [`crate::table`] is made.

/// Declares single numbers. Each of them has to be used outside this crate.
macro_rules! numbers {
    ($list:ident: $ty:ty { $( $name:ident = $value:expr => $doc:literal, )* }) => {
        numbers! { @declare $list: $ty, false, { $( $name = $value => $doc, )* } }
    };
    (@declare $list:ident: $ty:ty, $map:literal, { $( $name:ident = $value:expr => $doc:literal, )* }) => {
        $(
            #[doc = $doc]
            pub const $name: $ty = $value;
        )*
        pub(crate) const $list: $crate::table::Group = $crate::table::Group {
            name: stringify!($list),
            is_map: $map,
            constants: &[ $( $crate::table::Constant {
                name: stringify!($name),
                here: stringify!($name),
                value: $name as u64,
            }, )* ],
        };
    };
}

/// Declares the numbers or offsets of a device's registers.
macro_rules! registers {
    ($list:ident: $ty:ty { $( $name:ident = $value:expr => $doc:literal, )* }) => {
        numbers! { @declare $list: $ty, true, { $( $name = $value => $doc, )* } }
    };
}

/// FreeBSD's name of a member: with the prefix, or a name of its own.
macro_rules! freebsd_name {
    ($prefix:literal, $name:ident) => {
        concat!($prefix, stringify!($name))
    };
    ($prefix:literal, $name:ident, $full:literal) => {
        $full
    };
}

/// Declares the bits and fields of a register as a [`bitflags`] type that keeps bits without a name.
macro_rules! register {
    (
        $list:ident: $(#[$attr:meta])* $ty:ident($raw:ty), $prefix:literal {
            $( $name:ident $(@ $full:literal)? = $value:expr => $doc:literal, )*
        }
    ) => {
        ::bitflags::bitflags! {
            $(#[$attr])*
            #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
            pub struct $ty: $raw {
                $(
                    #[doc = concat!($doc, " (`", freebsd_name!($prefix, $name $(, $full)?), "`)")]
                    const $name = $value;
                )*
                const _ = !0;
            }
        }

        pub(crate) const $list: $crate::table::Group = $crate::table::Group {
            name: stringify!($ty),
            is_map: true,
            constants: &[ $( $crate::table::Constant {
                name: freebsd_name!($prefix, $name $(, $full)?),
                here: concat!(stringify!($ty), "::", stringify!($name)),
                value: $ty::$name.bits() as u64,
            }, )* ],
        };
    };
}

/// Declares the values of a register's field as an enumeration. The values are those in the register, not shifted.
macro_rules! values {
    (
        $list:ident: $(#[$attr:meta])* $ty:ident($raw:ty), $prefix:literal {
            $( $name:ident $full:literal = $value:expr => $doc:literal, )*
        }
    ) => {
        $(#[$attr])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[repr($raw)]
        pub enum $ty {
            $(
                #[doc = concat!($doc, " (`", $prefix, $full, "`)")]
                $name = $value,
            )*
        }

        impl $ty {
            /// The value of the field, which has no other bits set; `None` if it is reserved.
            pub const fn from_bits(bits: $raw) -> Option<Self> {
                $( if bits == Self::$name as $raw { return Some(Self::$name); } )*
                None
            }

            /// The field as it is in the register.
            pub const fn bits(self) -> $raw {
                self as $raw
            }
        }

        pub(crate) const $list: $crate::table::Group = $crate::table::Group {
            name: stringify!($ty),
            is_map: true,
            constants: &[ $( $crate::table::Constant {
                name: concat!($prefix, $full),
                here: concat!(stringify!($ty), "::", stringify!($name)),
                value: $ty::$name as u64,
            }, )* ],
        };
    };
}
