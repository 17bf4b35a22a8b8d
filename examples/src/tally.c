/* tally: the ten most frequent words of its input, one a line, with their counts. */

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { WORD_BYTES_MAX = 64, WORDS_MAX = 4096, SHOWN = 10 };

struct word {
    char text[WORD_BYTES_MAX];
    unsigned count;
};

static struct word words[WORDS_MAX];
static size_t known;

static void count(const char *text)
{
    for (size_t i = 0; i < known; i++) {
        if (strcmp(words[i].text, text) == 0) {
            words[i].count++;
            return;
        }
    }
    if (known < WORDS_MAX) {
        strcpy(words[known].text, text);
        words[known++].count = 1;
    }
}

/* More frequent words first; among equals, the alphabet. */
static int by_count(const void *a, const void *b)
{
    const struct word *x = a, *y = b;
    if (x->count != y->count)
        return x->count < y->count ? 1 : -1;
    return strcmp(x->text, y->text);
}

int main(void)
{
    char text[WORD_BYTES_MAX];
    size_t length = 0;
    int c;

    do {
        c = getchar();
        if (c != EOF && (isalpha(c) || c == '\'')) {
            if (length < sizeof text - 1)
                text[length++] = (char)tolower(c);
        } else if (length > 0) {
            text[length] = '\0';
            count(text);
            length = 0;
        }
    } while (c != EOF);

    qsort(words, known, sizeof words[0], by_count);
    for (size_t i = 0; i < known && i < SHOWN; i++)
        printf("%4u  %s\n", words[i].count, words[i].text);
    return ferror(stdin) ? EXIT_FAILURE : EXIT_SUCCESS;
}
