//! Macros that declare the structs and enumerations of the ABI together with the checks of their layout.

/// Declares `repr(C)` structs with public fields, each with its byte offset, and checks offsets and size at compile time.
/// All of them convert to and from bytes and have the all-zero value for a default.
macro_rules! abi_structs {
    ($(
        $(#[$attr:meta])*
        $name:ident [$size:literal] {
            $( $(#[$fattr:meta])* $field:ident @ $offset:literal : $ty:ty, )*
        }
    )*) => {$(
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
    )*};
}

/// Declares the members of one C enumeration as constants.
macro_rules! abi_enum {
    ($cname:literal : $ty:ty { $( $name:ident = $value:expr, )* }) => {
        $(
            #[doc = concat!("`", stringify!($name), "` of `", $cname, "`.")]
            pub const $name: $ty = $value;
        )*
    };
}

/// Declares bits and fields of a register as constants, each with its description.
macro_rules! bits {
    ($ty:ty { $( $name:ident = $value:expr => $doc:literal, )* }) => {
        $(
            #[doc = $doc]
            pub const $name: $ty = $value;
        )*
    };
}
