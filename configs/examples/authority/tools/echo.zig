// {"message": anything} on stdin -> {"result": anything} on stdout
const std = @import("std");

pub fn main(init: std.process.Init) !void {
    const arena = init.arena.allocator();
    var given: [4096]u8 = undefined;
    var stdin = std.Io.File.stdin().reader(init.io, &given);
    const text = try stdin.interface.allocRemaining(arena, .limited(1 << 20));
    const arguments = try std.json.parseFromSliceLeaky(std.json.Value, arena, text, .{});
    var room: [4096]u8 = undefined;
    var stdout = std.Io.File.stdout().writer(init.io, &room);
    try stdout.interface.print("{{\"result\":{f}}}", .{std.json.fmt(arguments.object.get("message").?, .{})});
    try stdout.interface.flush();
}
