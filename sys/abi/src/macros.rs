// SPDX-License-Identifier: BSD-2-Clause

//! Macros that declare the structs and enumerations of the ABI together with the checks of their layout. What they
//! declare they also put into a list, from which [`crate::table`] is made.

/// Declares `repr(C)` structs with public fields, each with its byte offset, and checks offsets and size at compile time.
/// All of them convert to and from bytes and have the all-zero value for a default.
macro_rules! abi_structs {
    ($list:ident: $(
        $(#[$attr:meta])*
        $name:ident [$size:literal] {
            $( $(#[$fattr:meta])* $field:ident @ $offset:literal : $ty:ty, )*
        }
    )*) => {
        $(
            $(#[$attr])*
            #[repr(C)]
            #[derive(
                Clone, Copy, Debug, PartialEq, Eq,
                ::zerocopy::FromBytes, ::zerocopy::IntoBytes, ::zerocopy::KnownLayout, ::zerocopy::Immutable,
            )]
            pub struct $name {
                $( $(#[$fattr])* pub $field: $ty, )*
            }

            impl Default for $name {
                fn default() -> Self {
                    ::zerocopy::FromZeros::new_zeroed()
                }
            }

            const _: () = {
                assert!(::core::mem::size_of::<$name>() == $size);
                $( assert!(::core::mem::offset_of!($name, $field) == $offset); )*
            };
        )*
        pub(crate) const $list: &[$crate::table::Struct] = &[ $(
            $crate::table::Struct {
                name: stringify!($name),
                size: ::core::mem::size_of::<$name>(),
                fields: &[ $(
                    $crate::table::Field {
                        name: stringify!($field),
                        offset: ::core::mem::offset_of!($name, $field),
                        size: ::core::mem::size_of::<$ty>(),
                        ty: stringify!($ty),
                    },
                )* ],
            },
        )* ];
    };
}

/// Declares the members of C enumerations as constants.
macro_rules! abi_enums {
    ($list:ident: $( $cname:literal : $ty:ty { $( $name:ident = $value:expr, )* } )*) => {
        $( $(
            #[doc = concat!("`", stringify!($name), "` of `", $cname, "`.")]
            pub const $name: $ty = $value;
        )* )*
        pub(crate) const $list: &[$crate::table::Enum] = &[ $(
            $crate::table::Enum { name: $cname, values: $crate::table::constants!($( $name ),*) },
        )* ];
    };
}

/// Declares bits and fields of a register as constants, each with its description.
macro_rules! bits {
    ($list:ident: $ty:ty { $( $name:ident = $value:expr => $doc:literal, )* }) => {
        $(
            #[doc = $doc]
            pub const $name: $ty = $value;
        )*
        pub(crate) const $list: &[$crate::table::Constant] = $crate::table::constants!($( $name ),*);
    };
}
