//! Where one session is present.

use crate::hub::TextId;

/// Memory of a place after the first one of a session.
pub const PLACE_BYTES: usize = 16;

/// The member of a stream under which a session has joined it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    pub stream: TextId,
    pub member: u32,
}

/// The places of a session, each in another stream. Most sessions have one, which needs no allocation; few have so many
/// that copying them takes long.
#[derive(Debug)]
pub enum Places {
    One(Place),
    /// At least two, sorted by stream.
    Many(Box<[Place]>),
}

const _: () = assert!(size_of::<Places>() == 16);

impl Places {
    fn as_slice(&self) -> &[Place] {
        match self {
            Self::One(place) => std::slice::from_ref(place),
            Self::Many(places) => places,
        }
    }

    pub fn find(&self, stream: TextId) -> Option<Place> {
        let places = self.as_slice();
        let position = places.binary_search_by_key(&stream, |it| it.stream);
        position.ok().map(|position| places[position])
    }

    pub fn last(&self) -> Place {
        *self.as_slice().last().expect("never empty")
    }

    /// Adds a place in a stream in which there is none.
    pub fn insert(&mut self, place: Place) {
        let places = self.as_slice();
        let position = places.partition_point(|it| it.stream < place.stream);
        let mut grown = Vec::with_capacity(places.len() + 1);
        grown.extend_from_slice(&places[..position]);
        grown.push(place);
        grown.extend_from_slice(&places[position..]);
        *self = Self::Many(grown.into_boxed_slice());
    }

    /// Removes a place that is there. Returns false when it is the only one: then the caller must remove the session.
    pub fn remove(&mut self, place: Place) -> bool {
        let places = match self {
            Self::One(_) => return false,
            Self::Many(places) => places,
        };
        let mut left = std::mem::take(places).into_vec();
        // A sweep removes the last one each time, which moves nothing.
        left.remove(left.partition_point(|it| it.stream < place.stream));
        *self = match left[..] {
            [only] => Self::One(only),
            _ => Self::Many(left.into_boxed_slice()),
        };
        true
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn places_are_a_map_by_stream(acts in prop::collection::vec((1u32..9, any::<bool>()), 0..60)) {
            let first = Place { stream: 5, member: 50 };
            let mut places = Places::One(first);
            let mut model = std::collections::BTreeMap::from([(5, 50)]);
            for (stream, add) in acts {
                let place = Place { stream, member: stream * 10 };
                if add && model.insert(stream, place.member).is_none() {
                    places.insert(place);
                } else if !add && model.contains_key(&stream) {
                    let others_stay = model.len() > 1;
                    prop_assert_eq!(places.remove(place), others_stay);
                    if others_stay {
                        model.remove(&stream);
                    }
                }
                for stream in 0..10 {
                    let expected = model.get(&stream).map(|&member| Place { stream, member });
                    prop_assert_eq!(places.find(stream), expected);
                }
                prop_assert_eq!(places.last().stream, *model.last_key_value().unwrap().0);
            }
        }
    }
}
