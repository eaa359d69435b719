class Runnable:
    def process(self, queries):
        from typing import Generic, Literal, Protocol, TypedDict, TypeVar, cast

        T = TypeVar("T")

        class Box(Generic[T]):
            def __init__(self, item: T):
                self.item = item

        class Sized(Protocol):
            def size(self) -> int: ...

        class Movie(TypedDict, total=False):
            name: str
            year: int

        def first(items: List[T], mode: Literal["a", "b"] = "a", other: Optional[Dict[str, Any]] = None) -> T:
            return cast(T, items[0])

        return [Box(1).item, Movie(name="x"), first([3])]
