// {"a": number, "b": number} on stdin -> {"result": their sum} on stdout
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static double member(const char *json, const char *name) {
  char quoted[32];
  snprintf(quoted, sizeof quoted, "\"%s\"", name);
  const char *found = strstr(json, quoted);
  const char *colon = found ? strchr(found, ':') : NULL;
  if (!colon) {
    fprintf(stderr, "there is no %s", name);
    exit(2);
  }
  return strtod(colon + 1, NULL);
}

int main(void) {
  static char json[65536];
  json[fread(json, 1, sizeof json - 1, stdin)] = 0;
  printf("{\"result\":%.17g}", member(json, "a") + member(json, "b"));
  return 0;
}
