class Runnable:
    def process(self, queries):
        Vector = list[float]

        def scale(vector: Vector, by: "float | None" = None) -> dict[str, Vector]:
            total: float = 0.0
            other: int
            for item in vector:
                total += item
            return {"total": total}

        return scale([1.0, 2.0])
